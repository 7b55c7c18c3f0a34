//! A toy that reads tokens at any positions over those of other calls: the exact law of a token given those that it sees.
//!
//! Shape letters: `B` batch, `S` tokens of a call, `P` tokens of the past, `V` vocabulary including the mask.

use tch::{Device, Kind, Tensor};

use super::toy::Toy;
use crate::{Pass, Passed, Result, Sees, ensure};

/// Tokens of a sequence with their positions: those of the past first, then those of the call.
struct Tokens {
    at: Vec<i64>,
    id: Vec<i64>,
}

/// Its keys are positions and its values tokens, `[B, 1, S, 1] f64` each: a layer in which each token shows itself.
pub(super) fn read(toy: &Toy, pass: &Pass) -> Result<Passed> {
    let ids = pass.ids()?;
    let (batch, new) = (ids.size()[0], ids.size()[1]);
    let past = pass.past.first().map_or(0, |keys| keys.size()[2]);
    let own = match &pass.positions {
        Some(positions) => positions.expand([batch, new], false),
        None => Tensor::arange_start(past, past + new, (Kind::Int64, Device::Cpu))
            .unsqueeze(0)
            .expand([batch, new], false),
    };
    let last = if own.numel() > 0 { own.max().int64_value(&[]) } else { 0 };
    ensure!(last < toy.length(), Shape, "a toy of {} tokens has no position {last}", toy.length());
    let seen = seen(&pass.sees, past as usize, new as usize)?;
    let mut table = Vec::new();
    for b in 0..batch {
        let all = |kept: usize, own: &Tensor| -> Result<Vec<i64>> {
            let own = own.get(b);
            Ok(Vec::try_from(match pass.past.get(kept) {
                Some(kept) => Tensor::cat(&[kept.get(b).view([-1]).to_kind(Kind::Int64), own], 0),
                None => own,
            })?)
        };
        let tokens = Tokens { at: all(0, &own)?, id: all(1, ids)? };
        for i in 0..new as usize {
            table.extend(law(toy, &tokens, past as usize + i, |j| seen(b, i, j, &tokens.at)));
        }
    }
    let hidden = Tensor::from_slice(&table).view([batch, new, -1]).log();
    let shown = |x: &Tensor| x.to_kind(Kind::Double).reshape([batch, 1, new, 1]);
    let keys = if pass.wants.keys() { vec![shown(&own), shown(ids)] } else { Vec::new() };
    Ok(Passed::new(hidden).keys(keys))
}

/// The law of token `i` given those that it sees, itself among them.
fn law(toy: &Toy, tokens: &Tokens, i: usize, sees: impl Fn(usize) -> bool) -> Vec<f64> {
    let length = toy.length() as usize;
    let mut known = vec![toy.mask(); length];
    for j in (0..tokens.at.len()).filter(|j| sees(*j)) {
        if tokens.id[j] != toy.mask() {
            known[tokens.at[j] as usize] = tokens.id[j];
        }
    }
    let at = tokens.at[i] as usize;
    let vocab = toy.mask() as usize + 1;
    toy.conditional(&known)[at * vocab..(at + 1) * vocab].to_vec()
}

/// Whether token `i` of the call of sequence `b` sees column `j` of past and call, whose positions are known.
type Seen<'a> = Box<dyn Fn(i64, usize, usize, &[i64]) -> bool + 'a>;

fn seen(sees: &Sees, past: usize, new: usize) -> Result<Seen<'_>> {
    Ok(match sees {
        Sees::All => Box::new(|_: i64, _: usize, _: usize, _: &[i64]| true),
        Sees::Causal => Box::new(move |_: i64, i: usize, j: usize, _: &[i64]| j <= past + i),
        Sees::Blocks(size) => Box::new(move |_: i64, i: usize, j: usize, at: &[i64]| {
            at[j] / size <= at[past + i] / size
        }),
        Sees::Earlier(size) => Box::new(move |_: i64, i: usize, j: usize, at: &[i64]| {
            let (own, other) = (at[past + i] / size, at[j] / size);
            if j < past { other < own } else { other == own }
        }),
        Sees::Pairs(pairs) => {
            let size = pairs.size();
            let (rows, columns) = (new as i64, (past + new) as i64);
            ensure!(
                size.len() >= 2 && size[size.len() - 2..] == [rows, columns],
                Shape,
                "the pairs of a pass are {size:?}, expected [.., {rows}, {columns}]"
            );
            let shared = size.len() == 2;
            Box::new(move |b: i64, i: usize, j: usize, _: &[i64]| {
                let of_sequence = if shared { pairs.shallow_clone() } else { pairs.get(b) };
                of_sequence.int64_value(&[i as i64, j as i64]) == 1
            })
        }
    })
}

#[cfg(test)]
mod tests {
    use crate::testkit::Toy;
    use crate::{Denoiser, Pass, Sees, Wants};
    use tch::{Device, Kind, Tensor};

    const I64: (Kind, Device) = (Kind::Int64, Device::Cpu);

    /// In any order over what was read before: a mask has the law given the tokens that it sees, as `hidden` gives it.
    #[test]
    fn a_token_has_the_law_given_what_it_sees() {
        let toy = Toy::new(3, 3);
        let model = Denoiser::new(&toy);
        let sigma = Tensor::zeros([1], (Kind::Double, Device::Cpu));
        let at = |x: &[i64]| Tensor::from_slice(x).unsqueeze(0);
        let read = Pass::new(&at(&[2]), &sigma).positions(&at(&[1])).wants(Wants::Keys);
        let keys = model.pass(&read).unwrap().keys;
        let masks = Pass::new(&at(&[3, 3]), &sigma).positions(&at(&[2, 0])).past(&keys);
        let got = model.pass(&masks.sees(Sees::Causal)).unwrap().hidden;
        let whole = model.hidden(&at(&[3, 2, 3]), &sigma).unwrap();
        assert_eq!(got.get(0).get(0), whole.get(0).get(2));
        assert_eq!(got.get(0).get(1), whole.get(0).get(0));
        // Nobody sees the token at 1 here.
        let pairs = Tensor::eye(3, I64).to_kind(Kind::Bool);
        let alone = Pass::new(&at(&[3, 2, 3]), &sigma).sees(Sees::Pairs(pairs));
        let got = model.pass(&alone).unwrap().hidden;
        let blind = model.hidden(&at(&[3, 3, 3]), &sigma).unwrap();
        assert_eq!(got.get(0).get(0), blind.get(0).get(0));
    }
}
