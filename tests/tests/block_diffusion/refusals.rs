//! What does not fit blocks is refused before a run begins.

use maskdiff_tests::run::{SMALL, maskdiff};

use super::{small, train};

#[test]
fn what_does_not_fit_blocks_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let bounds = [
        "training.resample=true",
        "training.sampling_eps_min=0.3",
        "training.sampling_eps_max=0.45",
    ];
    for (words, said) in [
        (&["block_size=5"][..], &["does not divide `model.length` (64)", "4 and 8"][..]),
        (&["block_size=128"], &["does not divide", "32 and 64"]),
        (&["backbone=ar", "parameterization=ar"], &["predicts one token after the other"]),
        (&["backbone=dimamba", "~model.n_heads"], &["needs `past`", "offered by:", "`dit`"]),
        (
            &["backbone=llama", "model.shift=true"],
            &["needs `past`", "`llama` with `model.shift` does not offer it", "training.from"],
        ),
        (
            &[&["block_size=4"], &bounds[..]].concat(),
            &["no number of masks among the 4 tokens", "widen"],
        ),
        (
            &["training.resample=true", "training.sampling_eps_max=0.1", "block_size=8"],
            &["no number of masks among the 8 tokens of a block is a share from 0.001 to 0.1"],
        ),
        (
            &["training.sampling_eps_min=0", "training.sampling_eps_max=0.001"],
            &["`training.sampling_eps_max` is 0.001, and shares begin at 0.001"],
        ),
        (
            &["training.importance_sampling=true", "training.sampling_eps_max=0.8"],
            &["parameterization `subs` with its options does not draw them evenly"],
        ),
        (
            &["sampling.predictor=confidence", "sampling.cache=prefix"],
            &["`sampling.cache` is \"prefix\", and in blocks", "set `sampling.cache=none`"],
        ),
        (&["training.sampling_eps_min=0.9", "training.sampling_eps_max=0.2"], &["not below"]),
        (&["training.sampling_eps_min=1", "training.sampling_eps_max=0.5"], &["not below"]),
        (&["sampling.new_tokens=9", "sampling.length=32"], &["sampling.new_tokens", "(32)"]),
        (&["sampling.semi_ar=true"], &["`sampling.semi_ar`", "sampling.length"]),
    ] {
        train(at, words).expect(2).says(said);
        assert!(!at.join("run").exists(), "{words:?}");
    }
    let whole = maskdiff(at, &[&["train"], SMALL, &["sampling.length=64", "run.dir=run"]].concat());
    whole.expect(2).says(&["set `block_size`"]);
}

/// What only blocks have is refused without them, what makes no sense in them as well, and a start that fails leaves no folder.
#[test]
fn keys_of_blocks_are_refused_where_they_would_be_ignored() {
    let folder = tempfile::tempdir().expect("a folder");
    for (words, said) in [
        (&["training.sampling_eps_min=0.3"][..], "`block_size` is not set"),
        (&["training.resample=true"], "`block_size` is not set"),
        (&["training.clip_search_widths=[0.5]"], "`block_size` is not set"),
        (&["sampling.kv_cache=false"], "`block_size` is not set"),
        (&["sampling.min_entropy=4"], "`block_size` is not set"),
        (&["block_size=16", "parameterization=udlm", "training.resample=true"], "has none"),
        (&["block_size=16", "training.clip_search_widths=[0.5,5]"], "must lie in [0, 1], got 5"),
        (&["block_size=16", "training.clip_search_widths=[0.0]"], "has 0"),
        (&["block_size=16", "training.clip_search_delta=1e-9"], "too many intervals"),
        (&["block_size=16", "sampling.min_entropy=4"], "the last 256 tokens"),
        (
            &["block_size=16", "sampling.length=128", "sampling.kv_cache=false"],
            "`sampling.context=reread`",
        ),
    ] {
        let out =
            maskdiff(folder.path(), &[&["train"], &small()[..], &["run.dir=run"], words].concat());
        out.expect(2).says(&[said]);
        assert!(!folder.path().join("run").exists(), "{words:?}");
    }
}
