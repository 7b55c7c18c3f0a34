//! What the samplers share: checks of a walk's options, the positions that may change, and the law from which they draw.

use maskdiff_plugin_api::ops::Restriction;
use maskdiff_plugin_api::prelude::*;
use tch::Kind;

use crate::coins::Rows;

/// Checks the options that walks have in common.
pub(crate) fn check_walk(steps: i64, t_min: f64, t_start: f64) -> Result<()> {
    ensure!(steps > 0, Config, "`sampling.steps` must be at least 1, got {steps}");
    ensure!(0.0 < t_min && t_min < 1.0, Config, "`sampling.t_min` must lie in (0, 1), got {t_min}");
    ensure!(
        t_min < t_start && t_start <= 1.0,
        Config,
        "`sampling.t_start` must lie above `sampling.t_min` ({t_min}) and not above 1, got {t_start}"
    );
    Ok(())
}

/// The network's law at rows of tokens, restricted: `log p [N, V]`, normalised.
pub(crate) fn law_of_x0(
    model: &Denoiser,
    restriction: &Restriction,
    xt_bl: &Tensor,
    rows_n: &Tensor,
    t: f64,
) -> Result<Tensor> {
    let t_b = model.times(xt_bl.size()[0], t);
    let log_p_nv = model.log_x0(xt_bl, &t_b, rows_n)?;
    if restriction.is_none() {
        return Ok(log_p_nv);
    }
    let restricted = restriction.apply(&log_p_nv);
    Ok(restricted.log_softmax(-1, restricted.kind()))
}

/// Checks `sampling.min_p`.
pub(crate) fn check_min_p(min_p: f64) -> Result<()> {
    ensure!(
        (0.0..1.0).contains(&min_p),
        Config,
        "`sampling.min_p` must lie in [0, 1), got {min_p}"
    );
    Ok(())
}

/// A law `[N, V] f64` without the tokens that are less probable than `min_p`; the likeliest token stays.
pub(crate) fn likely(law_nv: Tensor, min_p: f64) -> Tensor {
    if min_p == 0.0 {
        return law_nv;
    }
    let (most, _) = law_nv.max_dim(-1, true);
    let kept = law_nv.masked_fill(&law_nv.less_tensor(&most.clamp_max(min_p)), 0.0);
    &kept / kept.sum_dim_intlist(-1, true, Kind::Double)
}

/// The law `[N, V] f64` of a step whose laws are guided, of which `law` makes the plain one from the network's; `None` where it is the law of
/// clean tokens that is guided, if any.
pub(crate) fn guided_law(
    model: &Denoiser,
    restriction: &Restriction,
    (xt_bl, rows_n): (&Tensor, &Tensor),
    t: f64,
    law: impl Fn(&Rows) -> Result<Tensor>,
) -> Result<Option<Tensor>> {
    let t_b = model.times(xt_bl.size()[0], t);
    let Some(guidance) = model.guidance(xt_bl, &t_b, rows_n)? else { return Ok(None) };
    let z_n = ops::take_rows(xt_bl, rows_n);
    let rows = |log_p_nv: &Tensor| law(&Rows { z_n: &z_n, log_p_nv });
    restricted_step(&guidance, restriction, rows).map(Some)
}

/// The guided law of a step over restricted laws. What is lost is lost by the guided law of clean tokens: were it by each of the two laws, a
/// token that only the other one loses would have an endless advantage.
fn restricted_step(
    guidance: &Guidance,
    restriction: &Restriction,
    law: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let lost_nv = restriction.lost(&guidance.clean());
    guidance
        .step(|log_p_nv| law(&restriction.losing(log_p_nv, &lost_nv).log_softmax(-1, Kind::Double)))
}

/// Flat positions that may change in a walk from a start: all but the given ones. Where nobody says which those are, and the mask
/// is the only noise, they are the ones that hold no mask.
pub(crate) fn free_rows(model: &Denoiser, start_bl: &Tensor) -> Result<Tensor> {
    if let Some(given_bl) = model.given()? {
        return Ok(ops::rows_of(&given_bl.logical_not()));
    }
    let alone = masks_alone(model)?;
    Ok(match model.mask().filter(|_| alone) {
        Some(mask) => ops::rows_of(&start_bl.eq(mask)),
        None => all_rows(start_bl),
    })
}

/// Whether the mask is the only noise.
pub(crate) fn masks_alone(model: &Denoiser) -> Result<bool> {
    let half = model.times(1, 0.5);
    // sync: one number of the process.
    Ok(model.mixing(&half)?.every_b.double_value(&[0]) == 0.0)
}

/// All flat positions.
pub(crate) fn all_rows(xt_bl: &Tensor) -> Tensor {
    Tensor::arange(xt_bl.numel() as i64, (tch::Kind::Int64, xt_bl.device()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unlikely_tokens_are_lost_but_never_all() {
        let law = |p: &[f64]| Tensor::from_slice(p).unsqueeze(0);
        let values = |law_nv: Tensor| Vec::<f64>::try_from(law_nv.squeeze_dim(0)).unwrap();
        let kept = values(likely(law(&[0.5, 0.3, 0.2]), 0.25));
        assert!((kept[0] - 0.625).abs() < 1e-15 && kept[2] == 0.0, "{kept:?}");
        assert_eq!(values(likely(law(&[0.5, 0.3, 0.2]), 0.9)), [1.0, 0.0, 0.0]);
        assert_eq!(values(likely(law(&[0.5, 0.3, 0.2]), 0.0)), [0.5, 0.3, 0.2]);
        for wrong in [1.0, -0.1, f64::NAN] {
            assert!(check_min_p(wrong).unwrap_err().to_string().contains("`sampling.min_p`"));
        }
    }

    #[test]
    fn the_likeliest_tokens_are_those_of_the_guided_law() {
        let law = |p: &[f64]| Tensor::from_slice(p).unsqueeze(0).log();
        let guidance = Guidance::away(2.0, law(&[0.6, 0.3999, 0.0001]), law(&[0.6, 0.1, 0.3]));
        let two = Restriction::new(1.0, 2, 1.0).unwrap();
        let step = restricted_step(&guidance, &two, |log_p_nv| Ok(log_p_nv.exp())).unwrap();
        let p = Vec::<f64>::try_from(step.squeeze_dim(0)).unwrap();
        // Of the first two tokens p^2 / q, over their sums.
        let kept = [0.6 * 0.6 / 0.6, 0.3999 * 0.3999 / 0.1];
        for (i, kept_p) in kept.iter().enumerate() {
            let want = kept_p / (kept[0] + kept[1]);
            assert!((p[i] - want).abs() < 1e-12, "{p:?}");
        }
        assert_eq!(p[2], 0.0);
    }
}
