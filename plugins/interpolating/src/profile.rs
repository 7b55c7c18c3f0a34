//! The times of a predictor-corrector walk, and how much of each step is a predictor's.

use maskdiff_plugin_api::prelude::*;

/// The rule for kappa, the share of the predictor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mode {
    /// The posterior alone: 1.
    Posterior,
    /// The corrector alone: 0.
    Corrector,
    /// `eta` itself.
    Constant,
    /// `1 - min(eta, (1 - alpha_s)/alpha_t) / (1 - alpha_s)`.
    MaxCapped,
    /// `1 - eta min(1, (1 - alpha_s)/alpha_t) / (1 - alpha_s)`.
    MaxRescale,
    /// `1 - eta / (1 - alpha_s)`.
    Remdm,
}

/// What a walk is made of: three parts, each with a rule.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Profile {
    pub(crate) steps: i64,
    pub(crate) t_min: f64,
    /// The time at which the middle part stands still.
    pub(crate) plateau: Option<f64>,
    /// Shares of the first and the middle part in the times.
    pub(crate) fractions: [f64; 2],
    pub(crate) modes: [Mode; 3],
    pub(crate) eta: f64,
    /// As the original has it, `max_rescale` takes `eta min(eta, ..)`.
    pub(crate) eta_twice: bool,
}

/// `count` numbers from `first` to `last`; one number is `first`.
fn line(first: f64, last: f64, count: usize) -> Vec<f64> {
    let gaps = count.saturating_sub(1).max(1) as f64;
    let inner = |i: usize| first + (last - first) * i as f64 / gaps;
    (0..count).map(|i| if i > 0 && i + 1 == count { last } else { inner(i) }).collect()
}

impl Profile {
    /// How many times each part has; as the original rounds.
    pub(crate) fn parts(&self) -> [usize; 3] {
        let all = self.steps as usize + 1;
        let part = |fraction: f64, left: usize| {
            ((fraction * all as f64).round_ties_even() as usize).min(left)
        };
        let high = part(self.fractions[0], all);
        let middle = part(self.fractions[1], all - high);
        [high, middle, all - high - middle]
    }

    /// The `steps + 1` times, from 1 to `t_min`.
    pub(crate) fn times(&self) -> Vec<f64> {
        let Some(still) = self.plateau else {
            return line(1.0, self.t_min, self.steps as usize + 1);
        };
        let [high, middle, low] = self.parts();
        [line(1.0, still, high), vec![still; middle], line(still, self.t_min, low)].concat()
    }

    /// Kappa of each time, from the alphas of the times; the last one of a part that follows the schedule is 1.
    pub(crate) fn kappas(&self, alphas: &[f64]) -> Vec<f64> {
        let mut rest = alphas;
        let mut kappas = Vec::with_capacity(alphas.len());
        for (count, mode) in self.parts().into_iter().zip(self.modes) {
            let (part, later) = rest.split_at(count);
            rest = later;
            for (i, alpha_t) in part.iter().enumerate() {
                kappas.push(self.kappa(mode, *alpha_t, part.get(i + 1).copied()));
            }
        }
        kappas
    }

    fn kappa(&self, mode: Mode, alpha_t: f64, alpha_s: Option<f64>) -> f64 {
        let most = |alpha_s: f64| {
            if alpha_t > 0.0 { (1.0 - alpha_s) / alpha_t } else { f64::INFINITY }
        };
        let share = match (mode, alpha_s) {
            (Mode::Posterior, _) => return 1.0,
            (Mode::Corrector, _) => return 0.0,
            (Mode::Constant, _) => return self.eta,
            (_, None) => return 1.0,
            (Mode::MaxCapped, Some(alpha_s)) => self.eta.min(most(alpha_s)),
            (Mode::MaxRescale, Some(alpha_s)) => {
                self.eta * most(alpha_s).min(if self.eta_twice { self.eta } else { 1.0 })
            }
            (Mode::Remdm, Some(_)) => self.eta,
        };
        let lost = 1.0 - alpha_s.unwrap_or(0.0);
        if lost > 0.0 { (1.0 - share / lost).clamp(0.0, 1.0) } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(modes: [Mode; 3], fractions: [f64; 2], plateau: Option<f64>) -> Profile {
        Profile { steps: 10, t_min: 0.01, plateau, fractions, modes, eta: 0.05, eta_twice: false }
    }

    #[test]
    fn times_fall_and_stand_still_in_the_middle() {
        let modes = [Mode::Posterior; 3];
        let times = profile(modes, [0.3, 0.4], Some(0.5)).times();
        assert_eq!(times.len(), 11);
        assert_eq!((times[0], times[10]), (1.0, 0.01));
        assert!(times.windows(2).all(|w| w[0] >= w[1]), "{times:?}");
        assert_eq!(times.iter().filter(|t| **t == 0.5).count(), 6);
        let straight = profile(modes, [0.3, 0.4], None).times();
        assert!((straight[5] - 0.505).abs() < 1e-12);
    }

    #[test]
    fn each_part_follows_its_rule() {
        let alphas: Vec<f64> = (0..11).map(|i| i as f64 / 10.0).collect();
        let modes = [Mode::Corrector, Mode::Constant, Mode::MaxRescale];
        let kappas = profile(modes, [0.2, 0.2], None).kappas(&alphas);
        assert_eq!(kappas[..4], [0.0, 0.0, 0.05, 0.05]);
        // alpha 0.4 to 0.5: eta / (1 - 0.5); 0.8 to 0.9: eta (0.1 / 0.8) / 0.1.
        assert!((kappas[4] - 0.9).abs() < 1e-12);
        assert!((kappas[8] - (1.0 - 0.05 / 0.8)).abs() < 1e-12);
        assert_eq!(kappas[10], 1.0);
        let modes = [Mode::MaxCapped, Mode::Remdm, Mode::Posterior];
        let kappas = profile(modes, [0.5, 0.5], None).kappas(&alphas);
        assert!((kappas[0] - (1.0 - 0.05 / 0.9)).abs() < 1e-12);
        assert!(kappas.iter().all(|k| (0.0..=1.0).contains(k)), "{kappas:?}");
    }

    /// Where time stands still the middle part's rule holds, and its last step is a posterior's.
    #[test]
    fn a_plateau_has_the_shares_of_its_part() {
        let modes = [Mode::Posterior, Mode::Remdm, Mode::Posterior];
        let still = profile(modes, [0.4, 0.3], Some(0.4));
        let alphas: Vec<f64> = still.times().iter().map(|t| 1.0 - t).collect();
        let kappas = still.kappas(&alphas);
        // Of eleven times four, three and four.
        assert_eq!((kappas[..4].to_vec(), kappas[6..].to_vec()), (vec![1.0; 4], vec![1.0; 5]));
        let share = 1.0 - 0.05 / 0.4;
        assert!(kappas[4..6].iter().all(|kappa| (kappa - share).abs() < 1e-12), "{kappas:?}");
    }
}
