//! Every metric that this crate records, with what it says. A label has a small, known set of values: never a device, a
//! client or a topic.
