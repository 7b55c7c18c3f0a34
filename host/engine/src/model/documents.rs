//! Sequences that are packed with several documents, and first tokens that no network can predict.

use maskdiff_plugin_api::{
    Kind as ErrorKind, Pass, PluginError, Result as PluginResult, Sees, capability,
};
use tch::{Kind, Tensor};

use super::Model;
use crate::rows::{TokenRows, starts};

/// An option of a backbone under which the first token of a text has no law: its schema says so by this word.
const FIRST_GIVEN: &str = "x-first-given";

/// Whether an option of the backbone that is on leaves the first token of a text without a law.
pub(super) fn first_is_given(schema: &serde_json::Value, options: &serde_json::Value) -> bool {
    let properties = schema["properties"].as_object().into_iter().flatten();
    properties.into_iter().any(|(name, about)| about[FIRST_GIVEN] == true && options[name] == true)
}

impl Model {
    /// Leaves first tokens out of a loss where the model predicts a token off the state before it: of sequences where the network
    /// does, and of packed documents where the method does, too.
    pub fn leave_first(&self, rows: &mut TokenRows) {
        if self.first_given {
            rows.without_first(true);
        } else if rows.document_bl.is_some() && self.offered.contains(capability::NEXT_TOKEN) {
            rows.without_first(false);
        }
    }

    /// The numbers of the documents in a call over `[rows, length]` tokens: those of the batch, or of each of several copies of it.
    fn documents_of(&self, size: &[i64]) -> PluginResult<Option<Tensor>> {
        let moment = self.moment.borrow();
        let Some(document_bl) = moment.document_bl.as_ref() else { return Ok(None) };
        let known = document_bl.size();
        if known[0] == 0 || size[0] % known[0] != 0 || size[1] > known[1] {
            return Err(PluginError::new(
                ErrorKind::Unsupported,
                format!(
                    "a call over {size:?} tokens of a batch {known:?} that is packed with documents (`data.pack`)"
                ),
            ));
        }
        Ok(Some(document_bl.narrow(1, 0, size[1]).repeat([size[0] / known[0], 1])))
    }

    /// A call of the whole network over packed sequences: tokens see those of their document, which has positions from 0. None where
    /// each sequence is one document.
    pub(super) fn over_documents(&self, pass: &Pass) -> PluginResult<Option<Pass>> {
        let size = pass.tokens.ids().size();
        let Some(document_bl) = self.documents_of(&size)? else { return Ok(None) };
        let is_own = matches!(
            (&pass.sees, self.own_way()),
            (Sees::All, Sees::All) | (Sees::Causal, Sees::Causal)
        );
        if !is_own || pass.positions.is_some() || !pass.past.is_empty() || pass.wants.keys() {
            return Err(PluginError::new(
                ErrorKind::Unsupported,
                "this method reads the network otherwise than sequence by sequence, and sequences are packed with documents: \
                 `data.pack=false`, or `data.group_by_length=true` instead"
                    .to_string(),
            ));
        }
        let at = Tensor::arange(size[1], (Kind::Int64, document_bl.device())).unsqueeze(0);
        let first_bl = at.where_self(&starts(&document_bl), &document_bl.zeros_like());
        let positions = &at - first_bl.cummax(1).0;
        let pairs = document_bl.unsqueeze(2).eq_tensor(&document_bl.unsqueeze(1));
        let pairs = match self.own_way() {
            Sees::Causal => pairs.tril(0),
            _ => pairs,
        };
        let own = pass.at_sigma(&pass.sigma);
        Ok(Some(own.positions(&positions).sees(Sees::Pairs(pairs))))
    }
}
