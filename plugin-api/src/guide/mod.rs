//! The guide for plugin authors. Its code is compiled and run with the tests.
//!
//! 1. [`first_sampler`]: from an empty folder to text on the screen, and then to your own law
//! 2. [`schedules`]: a noise schedule
//! 3. [`processes`]: what noise does to a token
//! 4. [`parameterizations`]: what the network's output means, and the loss that teaches it
//! 5. [`backbones`]: a network
//! 6. [`shapes_and_errors`]: the conventions all of them share
//! 7. [`testing`]: contracts, the toy whose law is known, statistics
//! 8. [`performance`]: where the time goes, and what a plugin can do about it
//! 9. [`python`]: samplers, parameterizations and schedules without a build
//! 10. [`publishing`]: versions, what may change, how others build yours

#[doc = include_str!("first_sampler.md")]
pub mod first_sampler {}
#[doc = include_str!("schedules.md")]
pub mod schedules {}
#[doc = include_str!("processes.md")]
pub mod processes {}
#[doc = include_str!("parameterizations.md")]
pub mod parameterizations {}
#[doc = include_str!("backbones.md")]
pub mod backbones {}
#[doc = include_str!("shapes_and_errors.md")]
pub mod shapes_and_errors {}
#[doc = include_str!("testing.md")]
pub mod testing {}
#[doc = include_str!("performance.md")]
pub mod performance {}
#[doc = include_str!("python.md")]
pub mod python {}
#[doc = include_str!("publishing.md")]
pub mod publishing {}
