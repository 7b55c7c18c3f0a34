//! Which parameters the stages of the network read: what is shared out over the ranks stage by stage.

use maskdiff_base::error::{Error, Result};
use maskdiff_config::kind::ComponentKind;
use maskdiff_native::recorded;
use maskdiff_plugin_api::Denoiser;
use tch::{Kind, Tensor};

use super::Model;
use crate::component;

impl Model {
    /// The parameters of each stage, by their numbers in [`Model::trained`], then those that no stage reads, or several, or the head too.
    /// A call of the network with two tokens finds them.
    pub fn units(&self) -> Result<Vec<Vec<usize>>> {
        let device = self.facts.device();
        let ids = Tensor::zeros([1, 2], (Kind::Int64, device));
        let t_b = Tensor::ones([1], (Kind::Double, device));
        let label_b = Tensor::zeros([1], (Kind::Int64, device));
        let called = || {
            self.labelled(&label_b, || {
                let model = Denoiser::new(self);
                model.hidden(&ids, &model.sigma(&t_b)?).map(drop)
            })
        };
        let (called, met) = recorded(called).map_err(component::torch)?;
        let name = &self.names.backbone.name;
        called.map_err(|e| component::error(ComponentKind::Backbone, name, e))?;
        let trained = self.trained();
        let head = self.head_matrix();
        let mut stage_of: Vec<Option<usize>> = vec![None; trained.len()];
        let mut lone = vec![true; trained.len()];
        for (stage, leaf) in &met {
            let place = leaf.data_ptr();
            let Some(i) = trained.iter().position(|(_, tensor)| tensor.data_ptr() == place) else {
                continue;
            };
            let stage = usize::try_from(*stage).unwrap_or_default();
            let is_head = head == Some(trained[i].0.as_str());
            lone[i] &= stage_of[i].is_none_or(|known| known == stage) && !is_head;
            stage_of[i] = Some(stage);
        }
        let Some(last) = stage_of.iter().flatten().max() else {
            return Err(Error::plugin(
                format!("the stages of backbone `{name}` do not tell which parameters they read"),
                "build its plugin anew against this version's `plugin-api`, or train with `trainer.strategy=zero1`",
            ));
        };
        let mut units = vec![Vec::new(); last + 2];
        for (i, stage) in stage_of.iter().enumerate() {
            let unit = stage.filter(|_| lone[i]).unwrap_or(last + 1);
            units[unit].push(i);
        }
        Ok(units)
    }
}
