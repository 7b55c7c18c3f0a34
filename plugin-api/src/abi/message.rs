//! How arguments and answers of methods cross that came after contract 1.0: named tensors, and everything else as JSON.
//!
//! A type that crosses may gain a field without a change of the layout. A side that receives a name that it does not know refuses
//! it by that name, so nothing is dropped silently.

use abi_stable::StableAbi;
use abi_stable::std_types::{ROption, RString, RVec, Tuple2};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tch::Tensor;

use super::guard::{RAnswer, answer};
use super::tensor::RTensor;
use crate::{Result, bail};

/// Named tensors, and a JSON object.
#[repr(C)]
#[derive(StableAbi)]
pub struct RMessage {
    tensors: RVec<Tuple2<RString, RTensor>>,
    said: RString,
}

/// What a call by name returns: nothing where the other side does not know the method.
pub type RReply = RAnswer<ROption<RMessage>>;

/// An [`RMessage`] on its way in or out.
#[derive(Debug, Default)]
pub(crate) struct Message {
    tensors: Vec<(String, Tensor)>,
    said: Map<String, Value>,
}

/// What crosses as a part of a message. A struct gives each field under the field's own name.
pub(crate) trait Crosses: Sized {
    fn pack(&self, name: &str, message: &mut Message);
    fn unpack(name: &str, message: &mut Message) -> Result<Self>;
}

impl Message {
    /// A message with one value.
    pub(crate) fn of(name: &str, value: &impl Crosses) -> Self {
        let mut message = Self::default();
        value.pack(name, &mut message);
        message
    }

    /// The value of a message that [`Message::of`] made.
    pub(crate) fn into_value<T: Crosses>(mut self, name: &str) -> Result<T> {
        let value = T::unpack(name, &mut self)?;
        self.is_read(name)?;
        Ok(value)
    }

    pub(crate) fn put(&mut self, name: &str, tensor: &Tensor) {
        self.tensors.push((name.to_string(), tensor.shallow_clone()));
    }

    pub(crate) fn take(&mut self, name: &str) -> Option<Tensor> {
        let at = self.tensors.iter().position(|(held, _)| held == name)?;
        Some(self.tensors.swap_remove(at).1)
    }

    /// The rest of the name and the tensor of each that starts with `prefix`.
    pub(crate) fn take_all(&mut self, prefix: &str) -> Vec<(String, Tensor)> {
        let (taken, kept) = std::mem::take(&mut self.tensors)
            .into_iter()
            .partition(|(name, _)| name.starts_with(prefix));
        self.tensors = kept;
        let rest = |(name, tensor): (String, Tensor)| (name[prefix.len()..].to_string(), tensor);
        Vec::into_iter(taken).map(rest).collect()
    }

    pub(crate) fn say(&mut self, name: &str, value: impl Into<Value>) {
        self.said.insert(name.to_string(), value.into());
    }

    /// Whether a switch is sent, and on; it stays to be read.
    pub(crate) fn is_on(&self, name: &str) -> bool {
        self.said.get(name) == Some(&Value::Bool(true))
    }

    pub(crate) fn hear<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>> {
        let Some(value) = self.said.remove(name) else { return Ok(None) };
        Ok(Some(serde_json::from_value(value)?))
    }

    /// An error when anything was sent that nobody took.
    pub(crate) fn is_read(&self, method: &str) -> Result<()> {
        let tensors = self.tensors.iter().map(|(name, _)| name);
        match tensors.chain(self.said.keys()).next() {
            None => Ok(()),
            Some(name) => bail!(
                Unsupported,
                "`{method}` does not read `{name}`, which came after contract {}",
                super::API_VERSION
            ),
        }
    }

    /// The tensors with their names, for checks of what is lent.
    pub(crate) fn lent(&self) -> Vec<(String, Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
    }
}

impl From<Message> for RMessage {
    fn from(message: Message) -> Self {
        let pack = |(name, tensor): (String, Tensor)| Tuple2(name.into(), RTensor::new(tensor));
        Self {
            tensors: message.tensors.into_iter().map(pack).collect(),
            said: Value::Object(message.said).to_string().into(),
        }
    }
}

impl TryFrom<RMessage> for Message {
    type Error = crate::PluginError;

    fn try_from(message: RMessage) -> Result<Self> {
        let unpack = |Tuple2(name, tensor): Tuple2<RString, RTensor>| {
            (name.into_string(), tensor.into_tensor())
        };
        Ok(Self {
            tensors: message.tensors.into_iter().map(unpack).collect(),
            said: serde_json::from_str(&message.said)?,
        })
    }
}

/// The guarded answer of a method that was called by its name.
pub(crate) fn reply(body: impl FnOnce() -> Result<Option<Message>>) -> RReply {
    answer(body, |message| message.map(RMessage::from).into())
}

/// The other direction of [`reply`].
pub(crate) fn replied(reply: RReply) -> Result<Option<Message>> {
    match reply.into_result()? {
        ROption::RSome(message) => Message::try_from(message).map(Some),
        ROption::RNone => Ok(None),
    }
}

/// That the other side was built before there was a method.
pub(crate) fn lacks<T>(method: &str) -> Result<T> {
    bail!(
        Unsupported,
        "`{method}` is not known on the other side, which was built against an older contract than {}",
        super::API_VERSION
    )
}

impl Crosses for () {
    fn pack(&self, _: &str, _: &mut Message) {}

    fn unpack(_: &str, _: &mut Message) -> Result<Self> {
        Ok(())
    }
}

impl Crosses for Tensor {
    fn pack(&self, name: &str, message: &mut Message) {
        message.put(name, self);
    }

    fn unpack(name: &str, message: &mut Message) -> Result<Self> {
        match message.take(name) {
            Some(tensor) => Ok(tensor),
            None => bail!(Shape, "the tensor `{name}` is missing"),
        }
    }
}

impl Crosses for Option<Tensor> {
    fn pack(&self, name: &str, message: &mut Message) {
        if let Some(tensor) = self {
            message.put(name, tensor);
        }
    }

    fn unpack(name: &str, message: &mut Message) -> Result<Self> {
        Ok(message.take(name))
    }
}

impl Crosses for Vec<Tensor> {
    fn pack(&self, name: &str, message: &mut Message) {
        self.iter().enumerate().for_each(|(i, tensor)| message.put(&format!("{name}.{i}"), tensor));
    }

    fn unpack(name: &str, message: &mut Message) -> Result<Self> {
        let mut all = Vec::new();
        for (rest, tensor) in message.take_all(&format!("{name}.")) {
            all.push((rest.parse::<usize>()?, tensor));
        }
        all.sort_unstable_by_key(|(i, _)| *i);
        Ok(all.into_iter().map(|(_, tensor)| tensor).collect())
    }
}

impl Crosses for Vec<(String, Tensor)> {
    fn pack(&self, name: &str, message: &mut Message) {
        self.iter().for_each(|(of, tensor)| message.put(&format!("{name}.{of}"), tensor));
    }

    fn unpack(name: &str, message: &mut Message) -> Result<Self> {
        Ok(message.take_all(&format!("{name}.")))
    }
}

/// Values that cross as JSON; one that is the default does not cross at all, so an older side need not know its name.
macro_rules! as_json {
    ($($type:ty),+) => {$(
        impl Crosses for $type {
            fn pack(&self, name: &str, message: &mut Message) {
                if *self != Self::default() {
                    message.say(name, serde_json::json!(self));
                }
            }

            fn unpack(name: &str, message: &mut Message) -> Result<Self> {
                Ok(message.hear(name)?.unwrap_or_default())
            }
        }
    )+};
}

as_json!(
    bool,
    Option<bool>,
    i64,
    Option<i64>,
    Vec<i64>,
    f64,
    String,
    Vec<String>,
    crate::Wants,
    Option<crate::Rounds>
);

/// A struct crosses field by field.
macro_rules! crosses {
    ($type:ty { $($field:ident),+ $(,)? }) => {
        impl $crate::abi::message::Crosses for $type {
            fn pack(&self, _: &str, message: &mut $crate::abi::message::Message) {
                $($crate::abi::message::Crosses::pack(&self.$field, stringify!($field), message);)+
            }

            fn unpack(
                _: &str,
                message: &mut $crate::abi::message::Message,
            ) -> $crate::Result<Self> {
                Ok(Self {
                    $($field: $crate::abi::message::Crosses::unpack(stringify!($field), message)?,)+
                })
            }
        }
    };
}
pub(crate) use crosses;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Batch;
    use tch::{Device, Kind};

    fn numbers(n: i64) -> Tensor {
        Tensor::arange(n, (Kind::Int64, Device::Cpu))
    }

    #[test]
    fn a_value_survives_the_crossing() {
        let batch = Batch::new(&numbers(6).view([2, 3]), &numbers(2)).at(7, 9);
        let crossed = Message::try_from(RMessage::from(Message::of("batch", &batch))).unwrap();
        let back: Batch = crossed.into_value("batch").unwrap();
        assert_eq!((back.x0_bl, back.step, back.total_steps), (batch.x0_bl, 7, 9));
        assert!(back.label_b.is_none());
        let many: Vec<Tensor> = (0..12).map(numbers).collect();
        let crossed = Message::try_from(RMessage::from(Message::of("past", &many))).unwrap();
        let back: Vec<Tensor> = crossed.into_value("past").unwrap();
        assert_eq!(back, many, "in their order, 10 after 9");
    }

    #[test]
    fn a_name_that_is_not_known_is_refused_and_a_missing_one_too() {
        let mut message = Message::of("x", &numbers(2));
        message.say("later", 3);
        let error = message.into_value::<Tensor>("x").unwrap_err();
        assert!(error.to_string().contains("`x` does not read `later`"), "{error}");
        let error = Message::default().into_value::<Tensor>("x").unwrap_err();
        assert_eq!(error.to_string(), "the tensor `x` is missing");
    }
}
