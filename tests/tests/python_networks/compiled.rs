//! `torch.compile` inside a network in Python. It needs a C++ compiler and Python's headers, as everywhere.

use super::{net, python, trained};

/// A part that is compiled, and a whole one, give the losses of those that are not, with gradients through them.
#[test]
fn compiled_parts_give_the_losses_of_plain_ones() {
    let Some(_) = python() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let plain = trained(folder, &net(&[]), 3).expect("losses");
    for compiled in ["self.mix = torch.compile(self.mix)", "self.compile()"] {
        let losses = trained(folder, &net(&[("# EXTRA", compiled)]), 3).expect(compiled);
        for (a, b) in plain.iter().zip(&losses) {
            assert!((a - b).abs() < 1e-4, "{compiled}: {losses:?}, expected {plain:?}");
        }
    }
}
