//! Parameters of components that are no networks, and how answers of their traits become what crosses.

use serde_json::json;
use tch::Tensor;

use super::message::{Crosses, Message};
use crate::backbone::Parameter;
use crate::shape::Kinds;
use crate::{Parameters, Result, Rounds, ensure};

/// Parameters on their way over the boundary. Their memory is shared with the component.
#[derive(Debug, Default)]
pub struct Held(pub Vec<Parameter>);

impl Crosses for Held {
    fn pack(&self, name: &str, message: &mut Message) {
        for (i, parameter) in self.0.iter().enumerate() {
            message.put(&format!("{name}.{i}"), &parameter.tensor);
            message.say(
                &format!("{name}.{i}"),
                json!({ "name": parameter.name, "trainable": parameter.trainable }),
            );
        }
    }

    fn unpack(name: &str, message: &mut Message) -> Result<Self> {
        #[derive(serde::Deserialize)]
        struct Said {
            name: String,
            trainable: bool,
        }
        let mut all = Vec::new();
        while let Some(said) = message.hear::<Said>(&format!("{name}.{}", all.len()))? {
            let tensor = Tensor::unpack(&format!("{name}.{}", all.len()), message)?;
            all.push(Parameter { name: said.name, tensor, trainable: said.trainable });
        }
        Ok(Self(all))
    }
}

impl Held {
    /// Refuses what could not be trained or saved: two of one name, no floating point, a copy without a gradient of its own.
    pub(crate) fn check(&self) -> Result<()> {
        let mut names: Vec<&str> = self.0.iter().map(|p| p.name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return super::calls::broken(format!("two parameters are called `{}`", twice[0]));
        }
        for Parameter { name, tensor, trainable } in &self.0 {
            ensure!(!name.is_empty(), Panic, "a parameter has no name");
            let trains = Kinds::Floating.hold(tensor.kind()) && tensor.requires_grad();
            if *trainable && !trains {
                return super::calls::broken(format!(
                    "the parameter `{name}` is {:?} and has no gradient: make it by `Parameters`",
                    tensor.kind()
                ));
            }
        }
        Ok(())
    }
}

/// What a method of a trait returns, as what crosses.
pub(crate) trait Answer<T> {
    fn answered(self) -> Result<T>;
}

impl<T> Answer<T> for Result<T> {
    fn answered(self) -> Self {
        self
    }
}

impl Answer<Held> for Option<&Parameters> {
    fn answered(self) -> Result<Held> {
        let copy = |parameter: &Parameter| Parameter {
            name: parameter.name.clone(),
            tensor: parameter.tensor.shallow_clone(),
            trainable: parameter.trainable,
        };
        let all = self.into_iter().flat_map(Parameters::entries);
        Ok(Held(all.map(copy).collect()))
    }
}

impl Answer<Self> for Option<Rounds> {
    fn answered(self) -> Result<Self> {
        Ok(self)
    }
}
