//! The time of GIDD, in which its noise is written; it follows from alpha.

/// The two numbers of GIDD's noise: `c(t) = 2^gamma p/(1 - p) t^(gamma/2) (1 - t)^(gamma/2)`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    pub(crate) scale: f64,
    pub(crate) gamma: f64,
}

/// A time in [0, 1], as `t` and `1 - t` with all digits of both.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Time {
    pub(crate) t: f64,
    pub(crate) rest: f64,
}

impl Time {
    /// From `ln(t / (1 - t))`.
    fn of_odds(log_odds: f64) -> Self {
        Self { t: 1.0 / (1.0 + (-log_odds).exp()), rest: 1.0 / (1.0 + log_odds.exp()) }
    }
}

impl Clock {
    pub(crate) fn new(p_uniform: f64, gamma: f64) -> Self {
        Self { scale: 2f64.powf(gamma) * p_uniform / (1.0 - p_uniform), gamma }
    }

    /// The uniform noise over `1 - t + t`: what all tokens hold together, before everything is divided by `1 + c`.
    pub(crate) fn c(&self, time: Time) -> f64 {
        self.scale * (time.t * time.rest).powf(self.gamma / 2.0)
    }

    /// `(1 - t) dc/dt`.
    pub(crate) fn growth(&self, time: Time) -> f64 {
        self.gamma / 2.0 * (time.rest - time.t) / time.t * self.c(time)
    }

    /// The time at which `alpha = (1 - t) / (1 + c)`, by bisection: alpha falls strictly for gamma ≤ 2.
    pub(crate) fn time(&self, alpha: f64) -> Time {
        if alpha <= 0.0 {
            return Time { t: 1.0, rest: 0.0 };
        }
        let earlier = |time: Time| {
            let c = self.c(time);
            // Compared where the digits are.
            if alpha > 0.5 {
                (time.t + c) / (1.0 + c) < 1.0 - alpha
            } else {
                time.rest / (1.0 + c) > alpha
            }
        };
        let (mut low, mut high) = (-90.0, 90.0);
        for _ in 0..64 {
            let middle = 0.5 * (low + high);
            if earlier(Time::of_odds(middle)) {
                low = middle;
            } else {
                high = middle;
            }
        }
        Time::of_odds(0.5 * (low + high))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alpha_and_time_are_inverse() {
        for (p_uniform, gamma) in [(0.0, 1.0), (0.1, 1.0), (0.2, 0.5), (0.4, 1.5), (0.9, 2.0)] {
            let clock = Clock::new(p_uniform, gamma);
            for t in [1e-12, 1e-4, 0.2, 0.5, 0.77, 1.0 - 1e-4, 1.0 - 1e-9] {
                let time = Time { t, rest: 1.0 - t };
                let alpha = time.rest / (1.0 + clock.c(time));
                let back = clock.time(alpha);
                // Near 0 alpha has few digits of t.
                let near = 1e-9 * t.min(1.0 - t) + 1e-12;
                assert!((back.t - t).abs() < near, "{p_uniform} {gamma}: {t} {back:?}");
                assert!((back.t + back.rest - 1.0).abs() < 1e-15);
            }
        }
    }
}
