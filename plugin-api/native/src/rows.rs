//! Values of rows in a block of others.

use tch::Tensor;

use crate::*;

// SAFETY: the signature repeats cpp/rows.cpp.
unsafe extern "C" {
    fn maskdiff_put_rows(
        x: *const C_tensor,
        rows: *const C_tensor,
        value: *const C_tensor,
        result: *mut *mut C_tensor,
    ) -> *mut c_char;
}

/// A copy of `x [..]` in which the flat positions `rows [N]`, all different, hold `value [N]`, with gradients for `x` and `value`.
///
/// The gradient of a sum of it is one number spread over the rows, and says so by strides of 0. [`linear_nll`] and
/// [`interpolating_nll`] then do not wait for a GPU to learn whether all rows weigh the same.
///
/// # Errors
/// Another number of values than of rows, or another type.
pub fn put_rows(x: &Tensor, rows: &Tensor, value: &Tensor) -> Result<Tensor> {
    let mut result = std::ptr::null_mut();
    // SAFETY: live tensors, and a place for the new one.
    checked(unsafe {
        maskdiff_put_rows(x.as_ptr(), rows.as_ptr(), value.as_ptr(), &raw mut result)
    })?;
    // SAFETY: on success the shim hands over a new tensor.
    Ok(unsafe { Tensor::from_ptr(result) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    /// Values and gradients are those of libtorch's `index_copy`, for a sum, and for rows that weigh differently.
    #[test]
    fn values_and_gradients_are_those_of_index_copy() {
        tch::manual_seed(3);
        let draw = |size: &[i64]| Tensor::randn(size, (Kind::Double, Device::Cpu));
        for (rows, even) in [(vec![5i64, 0, 7], true), (vec![5, 0, 7], false), (vec![], true)] {
            let rows = Tensor::from_slice(&rows);
            let leaves = [draw(&[2, 4]), draw(&rows.size())].map(|x| x.set_requires_grad(true));
            let upstream = if even { Tensor::from(0.25) } else { draw(&[2, 4]) };
            let walked = |made: Tensor| {
                let total = (&made * &upstream).sum(Kind::Double);
                let total = if even { made.sum(Kind::Double) * 0.25 } else { total };
                let grads = Tensor::run_backward(&[total], &leaves, false, false);
                [made.detach()].into_iter().chain(grads).collect::<Vec<_>>()
            };
            let ours = walked(put_rows(&leaves[0], &rows, &leaves[1]).unwrap());
            let theirs = leaves[0].reshape([-1]).index_copy(0, &rows, &leaves[1]);
            assert_eq!(ours, walked(theirs.view([2, 4])));
        }
        let (x, rows) = (draw(&[2, 4]), Tensor::from_slice(&[1i64, 2]));
        assert!(put_rows(&x, &rows, &draw(&[3])).is_err());
    }
}
