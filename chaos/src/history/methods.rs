//! Calls of a device's methods, as back ends and the device saw them.

use super::Moment;

/// Everything that was called at one device.
#[derive(Debug, Clone, Default)]
pub struct CallHistory {
    pub device: String,
    pub calls: Vec<MethodCall>,
    /// In the order in which the device saw them.
    pub executions: Vec<Execution>,
}

/// A call by a back end. It is never made twice under one number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MethodCall {
    pub number: u64,
    pub begun: Moment,
    pub answer: CallAnswer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallAnswer {
    Answered {
        at: Moment,
        response: Response,
    },
    /// The hub says that the device was not called.
    NotCalled,
    /// It may have been called or not.
    Unknown,
}

/// What a device answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response {
    pub status: i32,
    /// A device counts its answers: no two are equal.
    pub number: u64,
}

/// The device was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Execution {
    /// The number of the call.
    pub call: u64,
    pub connection: u64,
    pub received: Moment,
    /// What it answered, and when that left.
    pub answered: Option<(Response, Moment)>,
}
