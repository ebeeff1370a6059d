//! A back end at one node: the clients by which it speaks to devices, as fast as they go.

use drover_proto::admin::commands_client::CommandsClient;
use drover_proto::admin::methods_client::MethodsClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

type Service = InterceptedService<Channel, Credential>;

/// Cheap to clone. Its calls have no deadline of their own.
#[derive(Clone)]
pub struct Backend {
    pub commands: CommandsClient<Service>,
    pub methods: MethodsClient<Service>,
}

/// Puts what the back end presents into each call.
#[derive(Clone)]
pub struct Credential(MetadataValue<Ascii>);

impl Backend {
    pub(super) fn new(node: Channel, credential: MetadataValue<Ascii>) -> Self {
        let service = InterceptedService::new(node, Credential(credential));
        Self {
            commands: CommandsClient::new(service.clone()),
            methods: MethodsClient::new(service),
        }
    }
}

impl Interceptor for Credential {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}
