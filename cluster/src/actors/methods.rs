//! Direct methods through the cluster: the way of a call to the leader, and of a report back to it.

use std::time::Duration;

use bytes::Bytes;
use drover_core::ids::{CallId, DeviceId, GroupId, SessionEpoch, ShardId};
use drover_core::method::{CallReport, METHOD_PAYLOAD_BYTES_MAX, MethodName, MethodResponse};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::calls::Invocation;
use super::cluster::{Cluster, unexpected};
use super::error::Error;
use super::node::Shared;
use super::reply::{Caller, Waiting};
use super::serve::serving;
use super::shard::ShardMsg;
use crate::wire::json;
use crate::wire::request::{Answer, Failure, Invoke, Reported, Request, Response};

/// The longest that a caller may wait for a device to connect, and for its answer (Azure IoT Hub, direct methods).
pub const METHOD_WAIT_MAX: Duration = Duration::from_mins(5);

/// A call of a device's method.
#[derive(Debug, Clone)]
pub struct MethodCall {
    pub name: MethodName,
    /// JSON text of at most [`METHOD_PAYLOAD_BYTES_MAX`] bytes.
    pub payload: Bytes,
    /// How long to wait for the device to connect: up to [`METHOD_WAIT_MAX`].
    pub connect_timeout: Duration,
    /// How long to wait for its answer from then on: up to [`METHOD_WAIT_MAX`].
    pub response_timeout: Duration,
}

impl Cluster {
    /// Calls a method of a connected device and waits for its answer. The device is called at most once. Errors say whether
    /// it was: [`drover_core::method::MethodFailure`].
    pub async fn invoke_method(
        &self,
        device: &DeviceId,
        call: MethodCall,
    ) -> Result<MethodResponse, Error> {
        check(&call)?;
        let shard = self.shard_of(device)?;
        let _permit = self.enter(call.payload.len())?;
        let deadline = self.deadline() + call.connect_timeout + call.response_timeout;
        let invoke = Invoke {
            device: device.clone(),
            name: call.name,
            payload: call.payload,
            connect_ms: call.connect_timeout.as_millis() as u32,
            response_ms: call.response_timeout.as_millis() as u32,
        };
        let here = || invoke_here(&self.shared, shard, invoke.clone());
        let request = Request::Invoke(Box::new(invoke.clone()));
        let answer = self.shared.router.ask(GroupId::Shard(shard), &request, deadline, here);
        let Answer::Method(response) = answer.await? else { return Err(unexpected(shard)) };
        Ok(response)
    }

    /// Tells the leader what became of a call. Success: it has heard it; whether anybody still waits is its affair.
    pub(super) async fn report_call(
        &self,
        shard: ShardId,
        device: &DeviceId,
        epoch: SessionEpoch,
        call: CallId,
        report: CallReport,
    ) -> Result<(), Error> {
        let reported = Reported { device: device.clone(), epoch, call, report };
        self::report(&self.shared, shard, reported, self.deadline()).await
    }
}

/// As [`Cluster::report_call`], for a node's own tasks.
pub(super) async fn report(
    shared: &Shared,
    shard: ShardId,
    reported: Reported,
    deadline: Instant,
) -> Result<(), Error> {
    let here = async || report_here(shared, shard, reported.clone());
    let request = Request::ReportCall(Box::new(reported.clone()));
    shared.router.ask(GroupId::Shard(shard), &request, deadline, here).await.map(drop)
}

fn check(call: &MethodCall) -> Result<(), Error> {
    let invalid =
        |field: &str, problem: String| Err(Error::Invalid { field: field.to_owned(), problem });
    if call.payload.len() > METHOD_PAYLOAD_BYTES_MAX {
        let problem = format!("at most {METHOD_PAYLOAD_BYTES_MAX} bytes are allowed");
        return invalid("payload", problem);
    }
    if !json::is_json(&call.payload) {
        return invalid("payload", "it is not JSON".to_owned());
    }
    let seconds = METHOD_WAIT_MAX.as_secs();
    if call.connect_timeout > METHOD_WAIT_MAX {
        return invalid("connect_timeout", format!("use 0 to {seconds} seconds"));
    }
    if call.response_timeout.is_zero() || call.response_timeout > METHOD_WAIT_MAX {
        return invalid("response_timeout", format!("use more than 0 and up to {seconds} seconds"));
    }
    Ok(())
}

/// Puts a call into the shard's actor. The answer comes through `caller`.
pub(super) fn submit(shared: &Shared, shard: ShardId, invoke: Invoke, caller: Caller) {
    let entered = serving(shared, shard).and_then(|replica| {
        let what = || format!("the calls of shard {shard}");
        let permit = replica.calls.admit(invoke.payload.len(), what)?;
        Ok((replica, permit))
    });
    let (replica, permit) = match entered {
        Ok(entered) => entered,
        Err(failure) => return caller.answer(Err(failure)),
    };
    let Invoke { device, name, payload, connect_ms, response_ms } = invoke;
    let reply = Waiting::new(caller, Some(device.clone()), permit);
    let connect = Duration::from_millis(connect_ms.into());
    let response = Duration::from_millis(response_ms.into());
    let invocation = Invocation { name, payload, connect, response, reply };
    // A message that finds no actor is dropped, and its reply says that it can be asked again.
    drop(replica.actor.send_message(ShardMsg::Invoke(device, invocation)));
}

async fn invoke_here(shared: &Shared, shard: ShardId, invoke: Invoke) -> Response {
    let (sender, answer) = oneshot::channel();
    submit(shared, shard, invoke, Caller::Here(sender));
    answer.await.unwrap_or(Err(Failure::Unknown))
}

/// Takes a report at the leader.
pub(super) fn report_here(shared: &Shared, shard: ShardId, reported: Reported) -> Response {
    let replica = serving(shared, shard)?;
    // A shard that has stopped has given its calls up.
    drop(replica.actor.send_message(ShardMsg::CallReported(reported)));
    Ok(Answer::CallReported)
}
