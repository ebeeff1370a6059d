//! MQTT over WebSocket (RFC 6455): the route, and messages as a stream of bytes.
//!
//! Once a socket is upgraded it is a connection like any other: a packet may span messages, and a message may hold
//! several packets. Frames, masks and pings are tungstenite's. What a client may cost before it has proved anything is one
//! message of [`MESSAGE_BYTES_MAX`].

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::Router;
use axum::extract::ws::{CloseCode, CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{Extension, State};
use axum::http::header::{HOST, ORIGIN, RETRY_AFTER};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use bytes::Bytes;
use futures::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tracing::debug;
use tungstenite::Error as WebSocketError;

use super::codec::PACKET_BYTES_MAX;
use super::listener::Server;
use crate::peer::Peer;

/// What a client must ask for. Azure IoT Hub serves AMQP under the same path, by another subprotocol.
const SUBPROTOCOL: &str = "mqtt";

/// The longest message: SDKs send each packet in one.
const MESSAGE_BYTES_MAX: usize = PACKET_BYTES_MAX;

/// Room that an idle connection keeps for reading.
const READ_BYTES: usize = 4 * 1024;

/// The longest message that is sent, and what may wait for the socket.
const SENT_BYTES_MAX: usize = 64 * 1024;
const WAITING_BYTES_MAX: usize = 4 * SENT_BYTES_MAX;

/// Clients may escape the dollar sign. What they ask for behind the path does not matter.
pub fn routes(server: Server) -> Router {
    Router::new()
        .route("/$iothub/websocket", any(upgrade))
        .route("/%24iothub/websocket", any(upgrade))
        .with_state(server)
}

async fn upgrade(
    State(server): State<Server>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    if !is_from_here(&headers) {
        return refuse(StatusCode::FORBIDDEN, "pages of other hosts may not connect");
    }
    let upgrade = upgrade.protocols([SUBPROTOCOL]);
    if upgrade.selected_protocol().is_none() {
        return refuse(StatusCode::BAD_REQUEST, "send Sec-WebSocket-Protocol: mqtt");
    }
    let Some(places) = server.take_places() else {
        let refusal = refuse(StatusCode::SERVICE_UNAVAILABLE, "no place is free: try again");
        return ([(RETRY_AFTER, "1")], refusal).into_response();
    };
    upgrade
        .read_buffer_size(READ_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(WAITING_BYTES_MAX)
        .max_message_size(MESSAGE_BYTES_MAX)
        .max_frame_size(MESSAGE_BYTES_MAX)
        .on_upgrade(move |socket| async move {
            server.serve_stream(MessageStream::new(socket), peer, places).await;
        })
}

fn refuse(status: StatusCode, what_to_do: &'static str) -> Response {
    (status, format!("{what_to_do}\n")).into_response()
}

/// A browser says which page wants to connect, and would show its user's certificate for it (S-28). Python's MQTT
/// client names the host that it dials.
fn is_from_here(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(ORIGIN) else { return true };
    let origin = origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok());
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let host = host.and_then(|host| format!("https://{host}").parse::<Uri>().ok());
    match (origin.as_ref().and_then(Uri::host), host.as_ref().and_then(Uri::host)) {
        (Some(origin), Some(host)) => origin.eq_ignore_ascii_case(host),
        _ => false,
    }
}

/// The bytes of binary messages, one after the other.
struct MessageStream {
    socket: WebSocket,
    /// What of the last message has not been read.
    unread: Bytes,
}

impl MessageStream {
    fn new(socket: WebSocket) -> Self {
        Self { socket, unread: Bytes::new() }
    }

    /// Says why the connection ends, if the client takes it at once.
    fn close_with(&mut self, code: CloseCode, context: &mut Context<'_>) -> io::Error {
        let frame = CloseFrame { code, reason: "".into() };
        let mut socket = Pin::new(&mut self.socket);
        if let Poll::Ready(Ok(())) = socket.as_mut().poll_ready(context)
            && socket.as_mut().start_send(Message::Close(Some(frame))).is_ok()
        {
            // The connection is given up either way.
            drop(socket.poll_flush(context));
        }
        io::ErrorKind::InvalidData.into()
    }

    fn failed(&mut self, error: axum::Error, context: &mut Context<'_>) -> io::Error {
        let error = error.into_inner();
        debug!(%error, "not a WebSocket any more");
        match error.downcast_ref() {
            Some(WebSocketError::Capacity(_)) => self.close_with(close_code::SIZE, context),
            Some(WebSocketError::Protocol(_)) => self.close_with(close_code::PROTOCOL, context),
            _ => io::Error::other(error),
        }
    }
}

impl AsyncRead for MessageStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.unread.is_empty() {
            match ready!(Pin::new(&mut this.socket).poll_next(context)) {
                Some(Ok(Message::Binary(bytes))) => this.unread = bytes,
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Text(_))) => {
                    return Poll::Ready(Err(this.close_with(close_code::UNSUPPORTED, context)));
                }
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(this.failed(error, context))),
            }
        }
        let count = buffer.remaining().min(this.unread.len());
        buffer.put_slice(&this.unread.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for MessageStream {
    /// One message, as long as may be.
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut socket = Pin::new(&mut self.socket);
        ready!(socket.as_mut().poll_ready(context)).map_err(io::Error::other)?;
        let count = bytes.len().min(SENT_BYTES_MAX);
        let message = Message::Binary(Bytes::copy_from_slice(&bytes[..count]));
        socket.start_send(message).map_err(io::Error::other)?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context).map_err(io::Error::other)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(context).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(host: &'static str, origin: Option<&'static str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, host.parse().expect("a value"));
        headers.extend(origin.map(|origin| (ORIGIN, origin.parse().expect("a value"))));
        headers
    }

    #[test]
    fn a_page_of_another_host_may_not_connect() {
        for (host, origin) in [
            ("hub:8443", None),
            ("hub:8443", Some("https://hub:443")),
            ("hub", Some("https://HUB")),
            ("[::1]:8443", Some("https://[::1]")),
        ] {
            assert!(is_from_here(&headers(host, origin)), "{host} {origin:?}");
        }
        for (host, origin) in [
            ("hub", Some("https://evil")),
            ("hub", Some("https://hub.evil")),
            ("hub", Some("null")),
            ("hub", Some("")),
        ] {
            assert!(!is_from_here(&headers(host, origin)), "{host} {origin:?}");
        }
    }
}
