//! Calls of direct methods and their answers.

use std::time::Duration;

use drover_cluster::actors::methods::MethodCall;
use drover_cluster::core::ids::DeviceId;
use drover_cluster::core::method::MethodResponse;
use drover_proto::admin::{InvokeMethodRequest, InvokeMethodResponse};

use super::identity;
use crate::grpc::status::Invalid;

/// How long a caller that says nothing waits for the answer (Azure IoT Hub, direct methods).
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// A device and the call that is to be made.
#[derive(Debug, Clone)]
pub(crate) struct Invoke {
    pub(crate) device: DeviceId,
    pub(crate) call: MethodCall,
}

impl TryFrom<InvokeMethodRequest> for Invoke {
    type Error = Invalid;

    fn try_from(request: InvokeMethodRequest) -> Result<Self, Invalid> {
        let name = request.method_name.parse();
        let payload = match request.payload {
            text if text.is_empty() => "null".into(),
            text => text.into(),
        };
        let connect = wait("connect_timeout", request.connect_timeout)?;
        let response = wait("response_timeout", request.response_timeout)?;
        let call = MethodCall {
            name: name.map_err(|problem| Invalid::new("method_name", problem))?,
            payload,
            connect_timeout: connect.unwrap_or_default(),
            response_timeout: response.unwrap_or(RESPONSE_TIMEOUT),
        };
        Ok(Self { device: identity(&request.device_id, &request.module_id)?, call })
    }
}

fn wait(field: &str, given: Option<prost_types::Duration>) -> Result<Option<Duration>, Invalid> {
    let wait = given.map(Duration::try_from).transpose();
    wait.map_err(|_| Invalid::new(field, "it must not be negative"))
}

pub(crate) fn response(response: &MethodResponse) -> InvokeMethodResponse {
    // It was checked to be JSON where it came in, and JSON is UTF-8.
    let payload = String::from_utf8_lossy(&response.payload).into_owned();
    InvokeMethodResponse { status: response.status, payload }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_azures_default() {
        let request = InvokeMethodRequest {
            device_id: "pump".to_owned(),
            method_name: "reboot".to_owned(),
            ..InvokeMethodRequest::default()
        };
        let Invoke { call, .. } = Invoke::try_from(request.clone()).expect("it is valid");
        assert_eq!((&call.payload[..], call.connect_timeout), (&b"null"[..], Duration::ZERO));
        assert_eq!(call.response_timeout, Duration::from_secs(30));
        let bad = InvokeMethodRequest { method_name: "a/b".to_owned(), ..request.clone() };
        assert_eq!(Invoke::try_from(bad).expect_err("it is no name").field, "method_name");
        let past = Some(prost_types::Duration { seconds: -1, nanos: 0 });
        let bad = InvokeMethodRequest { connect_timeout: past, ..request };
        assert_eq!(Invoke::try_from(bad).expect_err("it is no wait").field, "connect_timeout");
    }
}
