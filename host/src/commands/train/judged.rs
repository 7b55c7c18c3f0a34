//! Generative perplexity at each evaluation of a run: whether it is computed, and by which evaluator LM.

use maskdiff_base::error::Result;
use maskdiff_config::Config;
use maskdiff_config::kind::ComponentKind;
use maskdiff_engine::plugins::Registry;
use maskdiff_engine::train::Judged;
use maskdiff_engine::windows::Windows;
use maskdiff_plugin_api::capability;

use super::super::Common;
use super::super::score::Scorer;

/// Whether each evaluation scores texts: of a method that draws them one token after the other the original draws none.
pub(super) fn is_judged(config: &Config, registry: &Registry) -> Result<bool> {
    if !config.eval.compute_generative_perplexity {
        return Ok(false);
    }
    let (_, method) = registry.find(ComponentKind::Parameterization, config.method())?;
    let next_token = method.provides.iter().any(|offer| *offer == capability::NEXT_TOKEN);
    if next_token {
        let (key, method) = ("eval.compute_generative_perplexity", &config.top.parameterization);
        tracing::warn!(
            "`{key}=true` changes nothing while `{method}` is trained: `maskdiff sample RUN {key}=true` scores its texts"
        );
    }
    Ok(!next_token)
}

/// Who scores texts at each evaluation.
pub(super) fn judge(common: &Common, config: &Config) -> Result<Judged> {
    if config.eval.gen_ppl.mauve && config.eval.gen_ppl.references.is_none() {
        return Err(config.layers.error(
            "eval.gen_ppl.mauve",
            "`eval.gen_ppl.mauve` needs texts by people to compare with while training",
            "name a file of them: `eval.gen_ppl.references=FILE`",
        ));
    }
    let scorer = Scorer::open(common, config)?;
    scorer.check_room(config, Windows::ONE, true)?;
    let Scorer { judge, plan } = scorer;
    Ok(Judged { judge, plan })
}
