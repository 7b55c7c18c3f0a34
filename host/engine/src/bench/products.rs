//! What the matrix products of some work take alone: they are read from a trace of libtorch's profiler, and run once more by themselves.

use std::collections::BTreeMap;
use std::time::Instant;

use maskdiff_base::error::Result;
use maskdiff_native::wait_for;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::component;

/// A matrix, or a batch of some, in memory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Operand {
    size: Vec<i64>,
    stride: Vec<i64>,
}

/// A product of two.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Product {
    kind: &'static str,
    left: Operand,
    right: Operand,
}

/// The products of some work.
#[derive(Debug, Default)]
pub struct Products(BTreeMap<Product, i64>);

/// What they take alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone {
    /// Seconds, each product at the rate of its own shape.
    pub seconds: f64,
    /// Products and sums.
    pub flops: f64,
}

impl Products {
    /// From a trace in Chrome's format.
    pub fn of_trace(trace: &Value) -> Self {
        let mut all = Self::default();
        for event in trace["traceEvents"].as_array().into_iter().flatten() {
            all.read(event);
        }
        all
    }

    fn read(&mut self, event: &Value) {
        let name = event["name"].as_str().unwrap_or_default();
        let arguments = &event["args"];
        let operand = |i: usize| {
            let numbers = |key: &str| serde_json::from_value(arguments[key][i].clone()).ok();
            Some(Operand { size: numbers("Input Dims")?, stride: numbers("Input Strides")? })
        };
        let Some(kind) = arguments["Input type"][0].as_str().and_then(known) else { return };
        // What only calls one of these, as `linear`, is not counted again.
        let first = match name {
            "aten::mm" | "aten::bmm" => 0,
            "aten::addmm" | "aten::addmm_" | "aten::baddbmm" | "aten::baddbmm_" => 1,
            "mkldnn::_linear_pointwise" => {
                if let (Some(x), Some(weight)) = (operand(0), operand(1)) {
                    self.linear(kind, &x, &weight);
                }
                return;
            }
            _ => {
                if let Some(backward) = attention(name) {
                    // A backward pass is given the gradient first.
                    let first = usize::from(backward);
                    self.attention(kind, backward, (operand(first), operand(first + 1)));
                }
                return;
            }
        };
        if let (Some(left), Some(right)) = (operand(first), operand(first + 1)) {
            self.count(Product { kind, left, right }, 1);
        }
    }

    /// A linear map: rows of any shape times a matrix `[out, in]` turned.
    fn linear(&mut self, kind: &'static str, x: &Operand, weight: &Operand) {
        let (Some(&inner), &[columns, _]) = (x.size.last(), weight.size.as_slice()) else { return };
        let rows = x.size.iter().product::<i64>() / inner.max(1);
        let left = Operand { size: vec![rows, inner], stride: vec![inner, 1] };
        let right = Operand { size: vec![inner, columns], stride: vec![1, inner] };
        self.count(Product { kind, left, right }, 1);
    }

    /// Attention over queries and keys: two products forward, and five backward.
    fn attention(
        &mut self,
        kind: &'static str,
        backward: bool,
        operands: (Option<Operand>, Option<Operand>),
    ) {
        let (Some(q), Some(k)) = operands else { return };
        let (&[b, h, l, d], &[_, _, s, _]) = (q.size.as_slice(), k.size.as_slice()) else { return };
        let whole = |rows: i64, columns: i64| Operand {
            size: vec![b * h, rows, columns],
            stride: vec![rows * columns, columns, 1],
        };
        let (of_keys, of_values) = if backward { (2, 3) } else { (1, 1) };
        self.count(Product { kind, left: whole(l, d), right: whole(d, s) }, of_keys);
        self.count(Product { kind, left: whole(l, s), right: whole(s, d) }, of_values);
    }

    fn count(&mut self, product: Product, times: i64) {
        if product.left.size.len() == product.right.size.len() {
            *self.0.entry(product).or_default() += times;
        }
    }

    /// How many.
    pub fn len(&self) -> i64 {
        self.0.values().sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Runs each by itself, `repeats` times of which the median counts.
    pub fn alone(&self, device: Device, repeats: usize) -> Result<Alone> {
        let mut all = Alone::default();
        for (product, times) in &self.0 {
            let times = *times as f64;
            all.seconds += times * product.seconds(device, repeats).map_err(component::torch)?;
            all.flops += times * product.flops();
        }
        Ok(all)
    }
}

impl Product {
    fn flops(&self) -> f64 {
        let columns = self.right.size.last().copied().unwrap_or(0);
        2.0 * self.left.size.iter().product::<i64>() as f64 * columns as f64
    }

    fn seconds(&self, device: Device, repeats: usize) -> std::result::Result<f64, tch::TchError> {
        let kind = if self.kind == "float" { Kind::Float } else { reduced(self.kind) };
        let (left, right) = (self.left.made(kind, device)?, self.right.made(kind, device)?);
        let mut size = self.left.size.clone();
        if let (Some(columns), Some(last)) = (size.last_mut(), self.right.size.last()) {
            *columns = *last;
        }
        // Into memory that is there, as a step has it.
        let out = Tensor::f_zeros(&size, (kind, device))?;
        let run = || match size.len() {
            2 => left.f_mm_out(&out, &right).map(drop),
            _ => left.f_bmm_out(&out, &right).map(drop),
        };
        let wait = || wait_for(device).map_err(|e| tch::TchError::Torch(e.to_string()));
        // Warms up.
        run()?;
        wait()?;
        if device.is_cuda() {
            // Handed over together, as in a step, so that the launch of one hides behind another.
            let begun = Instant::now();
            (0..repeats).try_for_each(|_| run())?;
            wait()?;
            return Ok(begun.elapsed().as_secs_f64() / repeats as f64);
        }
        let mut seconds = Vec::with_capacity(repeats);
        for _ in 0..repeats {
            let begun = Instant::now();
            run()?;
            seconds.push(begun.elapsed().as_secs_f64());
        }
        seconds.sort_by(f64::total_cmp);
        Ok(seconds[seconds.len() / 2])
    }
}

impl Operand {
    fn made(&self, kind: Kind, device: Device) -> std::result::Result<Tensor, tch::TchError> {
        let last = |(size, stride): (&i64, &i64)| (size - 1).max(0) * stride;
        let numbers = self.size.iter().zip(&self.stride).map(last).sum::<i64>() + 1;
        let memory = Tensor::f_rand([numbers], (Kind::Float, device))?.f_to_kind(kind)?;
        memory.f_as_strided(&self.size, &self.stride, 0)
    }
}

/// The types that matrix products have, by the profiler's names.
fn known(name: &str) -> Option<&'static str> {
    ["float", "double", "c10::BFloat16", "c10::Half"].into_iter().find(|known| *known == name)
}

fn reduced(name: &str) -> Kind {
    match name {
        "double" => Kind::Double,
        "c10::Half" => Kind::Half,
        _ => Kind::BFloat16,
    }
}

/// Whether it is attention in one operation, and then whether backward.
fn attention(name: &str) -> Option<bool> {
    let rest = name.strip_prefix("aten::_scaled_dot_product_")?;
    let one = ["flash", "efficient", "cudnn"].iter().any(|kind| rest.starts_with(kind));
    one.then(|| rest.ends_with("_backward"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(name: &str, sizes: &[&[i64]]) -> Value {
        let strides: Vec<Vec<i64>> = sizes
            .iter()
            .map(|size| (0..size.len()).map(|i| size[i + 1..].iter().product()).collect())
            .collect();
        let types = vec!["float"; sizes.len()];
        json!({"name": name, "args": {"Input Dims": sizes, "Input Strides": strides, "Input type": types}})
    }

    #[test]
    fn every_product_is_counted_once() {
        let (heads, keys): (&[i64], &[i64]) = (&[2, 3, 5, 7], &[2, 3, 11, 7]);
        let trace = json!({"traceEvents": [
            event("aten::linear", &[&[4, 8], &[6, 8]]),
            event("aten::addmm", &[&[6], &[4, 8], &[8, 6]]),
            event("aten::mm", &[&[4, 8], &[8, 6]]),
            event("aten::bmm", &[&[3, 4, 8], &[3, 8, 6]]),
            event("mkldnn::_linear_pointwise", &[&[2, 2, 8], &[6, 8]]),
            event("aten::_scaled_dot_product_flash_attention_for_cpu", &[heads, keys, keys]),
            event("aten::_scaled_dot_product_flash_attention_for_cpu_backward", &[heads, heads, keys, keys]),
            event("aten::_scaled_dot_product_attention_math", &[heads, heads, heads]),
            event("aten::add", &[&[4, 8], &[4, 8]]),
            {"name": "process_name", "args": {"name": "maskdiff"}},
        ]});
        let products = Products::of_trace(&trace);
        assert_eq!(products.len(), 4 + 7);
        let alone = products.alone(Device::Cpu, 1).unwrap();
        let want =
            2.0 * (3.0 * 4.0 * 8.0 * 6.0 + 3.0 * 4.0 * 8.0 * 6.0 + 7.0 * 6.0 * 5.0 * 7.0 * 11.0);
        assert!((alone.flops - want).abs() < 1e-9, "{} {want}", alone.flops);
        assert!(alone.seconds > 0.0);
        assert!(Products::default().is_empty());
    }

    #[test]
    fn operands_lie_as_they_did() {
        let turned = Operand { size: vec![3, 2], stride: vec![1, 3] };
        let made = turned.made(Kind::BFloat16, Device::Cpu).unwrap();
        assert_eq!(
            (made.size(), made.stride(), made.kind()),
            (vec![3, 2], vec![1, 3], Kind::BFloat16)
        );
    }
}
