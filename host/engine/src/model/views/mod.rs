//! Views: models around a model. What lies behind a [`maskdiff_plugin_api::Denoiser`] is then not the model itself but one that calls it, and
//! no component can tell.
//!
//! `block_size=b` is one: sequences are shown as blocks, each of which the network reads over the clean blocks before it. So every
//! parameterization trains and is measured on blocks, and every sampler walks them. `sampling.cfg_scale=w` is another: the laws that a sampler sees are
//! guided.

pub mod blocks;
pub mod bounds;
pub mod classifier;
pub mod guided;
pub mod settings;
pub mod text;
pub mod training;

pub use blocks::BlockView;
pub use bounds::Interval;
pub use classifier::TellsClasses;
pub use guided::GuidedView;
pub use settings::Blocks;
pub use text::{Growth, Text};
pub use training::given;
