//! Commands and methods at a node of one's choice, each asked once: who measures outcomes must not have them repeated.

use std::time::Duration;

use drover_proto::admin::commands_client::CommandsClient;
use drover_proto::admin::methods_client::MethodsClient;
use drover_proto::admin::{
    CancelCommandRequest, CancelCommandResponse, CommandState, Feedback, InvokeMethodRequest,
    InvokeMethodResponse, ListCommandsRequest, ReadFeedbackRequest, SendCommandRequest,
    SendCommandResponse,
};
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use super::admin::Admin;

/// Whoever has not heard by then goes on, and does not know.
pub const PATIENCE: Duration = Duration::from_secs(4);
/// As many as a page may have.
const PAGE: u32 = 1000;

/// Why a call was not answered as it was wanted.
#[derive(Debug)]
pub enum Failure {
    /// The hub says so itself, and that nothing was done.
    Refused(Status),
    /// It may have been carried out or not.
    Unknown(String),
}

impl From<Status> for Failure {
    /// The hub's own statuses have details. What the transport makes up has none, and says nothing about what was done.
    fn from(status: Status) -> Self {
        let is_open = matches!(
            status.code(),
            Code::DeadlineExceeded | Code::Unknown | Code::Internal | Code::Cancelled
        );
        if is_open || status.details().is_empty() {
            return Self::Unknown(status.to_string());
        }
        Self::Refused(status)
    }
}

impl Failure {
    /// The command is there and has ended.
    pub fn is_command_ended(&self) -> bool {
        match self {
            Self::Refused(status) => status.code() == Code::FailedPrecondition,
            Self::Unknown(_) => false,
        }
    }

    /// The same request may be accepted later, or elsewhere.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Refused(status) => status.code() == Code::Unavailable,
            Self::Unknown(_) => true,
        }
    }
}

async fn answered<T>(
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Failure> {
    match timeout(PATIENCE, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(Failure::Unknown(format!("no answer in {PATIENCE:?}"))),
    }
}

impl Admin {
    fn commands_at(&self, node: usize) -> CommandsClient<Channel> {
        CommandsClient::new(self.node(node))
    }

    pub async fn send_command(
        &self,
        node: usize,
        request: SendCommandRequest,
    ) -> Result<SendCommandResponse, Failure> {
        answered(self.commands_at(node).send_command(self.request(request))).await
    }

    pub async fn cancel_command(
        &self,
        node: usize,
        request: CancelCommandRequest,
    ) -> Result<CancelCommandResponse, Failure> {
        answered(self.commands_at(node).cancel_command(self.request(request))).await
    }

    pub async fn invoke_method(
        &self,
        node: usize,
        request: InvokeMethodRequest,
    ) -> Result<InvokeMethodResponse, Failure> {
        let mut client = MethodsClient::new(self.node(node));
        answered(client.invoke_method(self.request(request))).await
    }

    /// The ids of a device's commands that have not ended.
    pub async fn waiting_commands(&self, device_id: &str) -> anyhow::Result<Vec<String>> {
        let mut waiting = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = ListCommandsRequest {
                device_id: device_id.to_owned(),
                page_size: PAGE,
                page_token: page_token.clone(),
                with_bodies: false,
                ..ListCommandsRequest::default()
            };
            let page = self
                .anywhere(async |node| {
                    let request: Request<_> = self.request(request.clone());
                    Ok(CommandsClient::new(node).list_commands(request).await?.into_inner())
                })
                .await?;
            let waits = |state| matches!(state, CommandState::Queued | CommandState::Locked);
            let of_page = page.commands.into_iter().filter(|command| waits(command.state()));
            waiting.extend(of_page.map(|command| command.message_id));
            if page.next_page_token.is_empty() {
                return Ok(waiting);
            }
            page_token = page.next_page_token;
        }
    }

    /// How the commands of a shard's devices have ended.
    pub async fn feedback(&self, shard: u32) -> anyhow::Result<Vec<Feedback>> {
        let request = ReadFeedbackRequest { shard, ..ReadFeedbackRequest::default() };
        self.anywhere(async |node| {
            let request = self.request(request.clone());
            let mut stream = CommandsClient::new(node).read_feedback(request).await?.into_inner();
            let mut feedback = Vec::new();
            while let Some(part) = stream.message().await? {
                feedback.extend(part.feedback);
            }
            Ok(feedback)
        })
        .await
    }
}
