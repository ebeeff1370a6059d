//! Calls of direct methods between nodes, and what became of them.

use bytes::Bytes;
use drover_core::ids::{CallId, DeviceId, SessionEpoch};
use drover_core::method::{CallReport, MethodFailure, MethodName, MethodResponse};
use drover_proto::cluster as proto;
use proto::report_call::Report;

/// A call as a back end makes it, for the leader of the device's shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invoke {
    pub device: DeviceId,
    pub name: MethodName,
    /// JSON text.
    pub payload: Bytes,
    /// How long to wait for the device to connect, and from then on for its answer.
    pub connect_ms: u32,
    pub response_ms: u32,
}

/// What became of a call at the node of the connection that it was for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reported {
    pub device: DeviceId,
    pub epoch: SessionEpoch,
    pub call: CallId,
    pub report: CallReport,
}

pub(super) fn of_invoke(invoke: &Invoke) -> proto::InvokeMethod {
    proto::InvokeMethod {
        device: invoke.device.as_str().to_owned(),
        name: invoke.name.as_str().to_owned(),
        payload: invoke.payload.clone(),
        connect_ms: invoke.connect_ms,
        response_ms: invoke.response_ms,
    }
}

pub(super) fn invoke(invoke: proto::InvokeMethod) -> Option<Invoke> {
    Some(Invoke {
        device: DeviceId::from_key(&invoke.device).ok()?,
        name: invoke.name.parse().ok()?,
        payload: invoke.payload,
        connect_ms: invoke.connect_ms,
        response_ms: invoke.response_ms,
    })
}

pub(super) fn of_reported(reported: &Reported) -> proto::ReportCall {
    let report = match &reported.report {
        CallReport::Answered(response) => Report::Answered(of_response(response.clone())),
        CallReport::BadResponse => Report::BadResponse(true),
        CallReport::NotSent => Report::NotSent(true),
    };
    proto::ReportCall {
        device: reported.device.as_str().to_owned(),
        epoch: reported.epoch.get(),
        call: reported.call.get(),
        report: Some(report),
    }
}

pub(super) fn reported(reported: proto::ReportCall) -> Option<Reported> {
    Some(Reported {
        device: DeviceId::from_key(&reported.device).ok()?,
        epoch: SessionEpoch::new(reported.epoch),
        call: CallId::new(reported.call),
        report: match reported.report? {
            Report::Answered(answered) => CallReport::Answered(response(answered)),
            Report::BadResponse(_) => CallReport::BadResponse,
            Report::NotSent(_) => CallReport::NotSent,
        },
    })
}

pub(super) fn of_response(response: MethodResponse) -> proto::MethodResponse {
    proto::MethodResponse { status: response.status, payload: response.payload }
}

pub(super) fn response(response: proto::MethodResponse) -> MethodResponse {
    MethodResponse { status: response.status, payload: response.payload }
}

pub(super) fn of_failure(failure: MethodFailure) -> proto::Problem {
    let (kind, number) = match failure {
        MethodFailure::NotConnected => ("method_not_connected", None),
        MethodFailure::NotSubscribed => ("method_not_subscribed", None),
        MethodFailure::Moving => ("method_moving", None),
        MethodFailure::NoResponse => ("method_no_response", None),
        MethodFailure::ConnectionLost => ("method_connection_lost", None),
        MethodFailure::BadResponse => ("method_bad_response", None),
        MethodFailure::TooManyCalls { limit } => ("method_too_many_calls", Some(limit.into())),
    };
    proto::Problem { kind: kind.to_owned(), number, ..proto::Problem::default() }
}

/// `None`: the kind is not known here.
pub(super) fn failure(problem: &proto::Problem) -> Option<MethodFailure> {
    Some(match problem.kind.as_str() {
        "method_not_connected" => MethodFailure::NotConnected,
        "method_not_subscribed" => MethodFailure::NotSubscribed,
        "method_moving" => MethodFailure::Moving,
        "method_no_response" => MethodFailure::NoResponse,
        "method_connection_lost" => MethodFailure::ConnectionLost,
        "method_bad_response" => MethodFailure::BadResponse,
        "method_too_many_calls" => {
            MethodFailure::TooManyCalls { limit: problem.number?.try_into().ok()? }
        }
        _ => return None,
    })
}
