//! Which tokens of a text are revealed by which call, drawn before the walk.

use maskdiff_plugin_api::prelude::*;

/// When diffusion reveals its tokens.
#[derive(Debug)]
pub(crate) enum Grid {
    /// One after the other.
    Alone,
    /// At the first step whose level lies above the token's number: the share that is revealed then.
    Levels(Vec<f64>),
    /// Those at once that stand so far apart.
    Apart(i64),
}

/// One text: positions that are given, in the order in which they are read, and those that each call reveals.
#[derive(Debug, Default)]
struct Text {
    given: Vec<i64>,
    calls: Vec<Vec<i64>>,
}

/// The texts of a batch.
#[derive(Debug)]
pub(crate) struct Plan(Vec<Text>);

impl Plan {
    /// From a uniform number for each token, `[B, L] f64`, and which of them are given, `[B, L] bool`. Tokens whose number is below
    /// `alpha_0` are revealed by diffusion in the order of their numbers, the others from left to right.
    pub(crate) fn new(u_bl: &Tensor, given_bl: &Tensor, alpha_0: f64, grid: &Grid) -> Result<Self> {
        // sync: when a token is revealed is decided here.
        let length = u_bl.size()[1] as usize;
        let flat = |x: &Tensor| x.to_device(tch::Device::Cpu).contiguous().view([-1]);
        let numbers = Vec::<f64>::try_from(flat(u_bl))?;
        let given = Vec::<bool>::try_from(flat(given_bl))?;
        let texts = numbers.chunks(length).zip(given.chunks(length));
        Ok(Self(texts.map(|(u, given)| Text::new(u, given, alpha_0, grid)).collect()))
    }

    /// Calls of the text that takes most.
    pub(crate) fn calls(&self) -> usize {
        self.0.iter().map(|text| text.calls.len()).max().unwrap_or(0)
    }

    /// How many texts there are.
    pub(crate) fn texts(&self) -> usize {
        self.0.len()
    }

    /// What a call of a text reveals; `None` where the text is whole.
    pub(crate) fn reveals(&self, text: usize, call: usize) -> Option<&[i64]> {
        self.0[text].calls.get(call).map(Vec::as_slice)
    }

    /// What was revealed right before a call, or given before the first.
    pub(crate) fn before(&self, text: usize, call: usize) -> &[i64] {
        match call.checked_sub(1) {
            Some(last) => &self.0[text].calls[last],
            None => &self.0[text].given,
        }
    }
}

impl Text {
    fn new(u: &[f64], given: &[bool], alpha_0: f64, grid: &Grid) -> Self {
        let sorted = |keep: &dyn Fn(usize) -> bool| {
            let mut all: Vec<usize> = (0..u.len()).filter(|l| keep(*l)).collect();
            all.sort_by(|a, b| u[*a].total_cmp(&u[*b]));
            all
        };
        let mut text = Self {
            given: sorted(&|l| given[l]).iter().map(|l| *l as i64).collect(),
            calls: Vec::new(),
        };
        let free = sorted(&|l| !given[l] && u[l] < alpha_0);
        let alone = |l: usize| vec![l as i64];
        match grid {
            Grid::Alone => text.calls.extend(free.into_iter().map(alone)),
            Grid::Levels(levels) => {
                let step =
                    |l: usize| levels.partition_point(|level| *level <= u[l]).min(levels.len() - 1);
                text.group(free, step);
            }
            Grid::Apart(stride) => {
                let place = |l: usize| l % *stride as usize;
                let mut free = free;
                free.sort_by_key(|l| place(*l));
                text.group(free, place);
            }
        }
        text.calls.extend((0..u.len()).filter(|l| !given[*l] && u[*l] >= alpha_0).map(alone));
        text
    }

    /// A call for each run of tokens that go together.
    fn group(&mut self, tokens: Vec<usize>, step: impl Fn(usize) -> usize) {
        let mut last = None;
        for l in tokens {
            let now = Some(step(l));
            if now != last {
                self.calls.push(Vec::new());
            }
            last = now;
            if let Some(call) = self.calls.last_mut() {
                call.push(l as i64);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(alpha_0: f64, grid: &Grid) -> Vec<Vec<i64>> {
        let u = Tensor::from_slice(&[0.7, 0.2, 0.9, 0.1, 0.4, 0.3]).unsqueeze(0);
        let given = Tensor::from_slice(&[false, false, false, false, false, true]).unsqueeze(0);
        let plan = Plan::new(&u, &given, alpha_0, grid).unwrap();
        assert_eq!(plan.before(0, 0), [5]);
        (0..plan.calls()).map(|call| plan.reveals(0, call).unwrap().to_vec()).collect()
    }

    #[test]
    fn tokens_are_revealed_in_the_order_of_their_numbers() {
        assert_eq!(calls(1.0, &Grid::Alone), [[3], [1], [4], [0], [2]]);
        // The tail goes from left to right, whatever its numbers are.
        assert_eq!(calls(0.3, &Grid::Alone), [[3], [1], [0], [2], [4]]);
        assert_eq!(calls(0.0, &Grid::Alone), [[0], [1], [2], [3], [4]]);
    }

    #[test]
    fn tokens_of_a_step_go_together_and_empty_steps_cost_nothing() {
        let levels = Grid::Levels(vec![0.25, 0.26, 0.5, 0.95]);
        assert_eq!(calls(1.0, &levels), [vec![3, 1], vec![4], vec![0, 2]]);
        // What rounding leaves over joins the last step.
        assert_eq!(calls(1.0, &Grid::Levels(vec![0.5])), [[3, 1, 4, 0, 2]]);
        assert_eq!(calls(1.0, &Grid::Apart(2)), [vec![4, 0, 2], vec![3, 1]]);
        assert_eq!(calls(0.8, &Grid::Apart(3)), [vec![3, 0], vec![1, 4], vec![2]]);
    }
}
