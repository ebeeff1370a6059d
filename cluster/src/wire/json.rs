//! JSON text to twin values and back.

use drover_core::document::Object;

/// Why a text is not a JSON object that a twin can hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct Invalid {
    pub problem: String,
}

/// Parses a JSON object. Nesting deeper than 128 is refused before it is followed.
pub fn parse_object(text: &[u8]) -> Result<Object, Invalid> {
    let _ = text;
    todo!()
}

/// Renders an object as JSON text, members in key order.
pub fn render_object(object: &Object) -> String {
    let _ = object;
    todo!()
}
