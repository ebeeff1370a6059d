//! What waits to be written to a peer: envelopes that wait together leave in one frame.
//!
//! The queue is bounded twice, in envelopes and in bytes. While the connection takes no more, envelopes gather here, so
//! frames grow with the load by themselves.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use drover_proto::cluster::{Envelope, Frame, Hello};
use futures::Stream;
use prost::Message;
use tokio::sync::mpsc;

use crate::metrics;

/// Envelopes that may wait for one peer.
const QUEUE_ENVELOPES: usize = 8192;
/// Bytes that may wait for one peer. The last envelope may exceed it.
const QUEUE_BYTES: usize = 64 * 1024 * 1024;
/// A frame is closed when it has this many envelopes, or this many bytes: enough to make the cost of a frame vanish, and
/// little enough that the peer begins to work on the first envelope while the rest is still under way.
const FRAME_ENVELOPES: usize = 512;
const FRAME_BYTES: usize = 1024 * 1024;
/// The largest frame that is read: a full frame, and one envelope of the largest entries on top.
pub(super) const FRAME_BYTES_MAX: usize = 64 * 1024 * 1024;

struct Sized {
    bytes: usize,
    envelope: Envelope,
}

/// Where envelopes for a peer are put.
#[derive(Debug, Clone)]
pub(super) struct Outbox {
    queue: mpsc::Sender<Sized>,
    bytes: Arc<AtomicUsize>,
}

/// The other end of an [`Outbox`]: what is written to the stream.
pub(super) struct Frames {
    hello: Option<Hello>,
    /// The other tasks had their turn since the first envelope of the next frame came.
    gathered: bool,
    queue: mpsc::Receiver<Sized>,
    bytes: Arc<AtomicUsize>,
}

/// Why an envelope was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotTaken {
    Full,
    Closed,
}

pub(super) fn outbox(hello: Option<Hello>) -> (Outbox, Frames) {
    let (sender, receiver) = mpsc::channel(QUEUE_ENVELOPES);
    let bytes = Arc::new(AtomicUsize::new(0));
    let outbox = Outbox { queue: sender, bytes: Arc::clone(&bytes) };
    (outbox, Frames { hello, gathered: false, queue: receiver, bytes })
}

impl Outbox {
    /// Takes an envelope if there is room.
    pub(super) fn try_send(&self, envelope: Envelope) -> Result<(), NotTaken> {
        if self.bytes.load(Ordering::Relaxed) >= QUEUE_BYTES {
            return Err(NotTaken::Full);
        }
        let bytes = envelope.encoded_len();
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.queue.try_send(Sized { bytes, envelope }).map_err(|error| {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            match error {
                mpsc::error::TrySendError::Full(_) => NotTaken::Full,
                mpsc::error::TrySendError::Closed(_) => NotTaken::Closed,
            }
        })
    }

    /// Waits for a place in the queue. Only the number of envelopes is waited for: answers are small.
    pub(super) async fn send(&self, envelope: Envelope) -> Result<(), NotTaken> {
        let bytes = envelope.encoded_len();
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.queue.send(Sized { bytes, envelope }).await.map_err(|_| NotTaken::Closed)
    }
}

impl Stream for Frames {
    type Item = Frame;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        if let Some(hello) = self.hello.take() {
            return Poll::Ready(Some(Frame { hello: Some(hello), envelopes: Vec::new() }));
        }
        // Who has just put an envelope here is often the first of many that were woken together: they go first.
        if !self.queue.is_empty() && !std::mem::replace(&mut self.gathered, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut envelopes = Vec::new();
        let mut bytes = 0;
        while envelopes.len() < FRAME_ENVELOPES && bytes < FRAME_BYTES {
            match self.queue.poll_recv(cx) {
                Poll::Ready(Some(next)) => {
                    bytes += next.bytes;
                    envelopes.push(next.envelope);
                }
                Poll::Ready(None) if envelopes.is_empty() => return Poll::Ready(None),
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        if envelopes.is_empty() {
            return Poll::Pending;
        }
        self.gathered = false;
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        metrics::peer_frame_sent(envelopes.len());
        Poll::Ready(Some(Frame { hello: None, envelopes }))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use drover_proto::cluster::envelope::Body;
    use futures::{FutureExt, StreamExt};

    use super::*;

    fn envelope(id: u64, size: usize) -> Envelope {
        let body = Some(Body::Request(Bytes::from(vec![0; size])));
        Envelope { id, group: 1, incarnation: 0, deadline_ms: 0, body }
    }

    /// The frame that is ready once the other tasks had their turn.
    fn next(frames: &mut Frames) -> Option<Frame> {
        assert!(frames.next().now_or_never().is_none(), "it gathers first, or nothing waits");
        frames.next().now_or_never().flatten()
    }

    #[test]
    fn what_waits_together_leaves_in_one_frame_in_order() {
        let (outbox, mut frames) = outbox(None);
        for id in 0..5 {
            outbox.try_send(envelope(id, 10)).expect("there is room");
        }
        let frame = next(&mut frames).expect("envelopes wait");
        let ids: Vec<_> = frame.envelopes.iter().map(|envelope| envelope.id).collect();
        assert_eq!(ids, [0, 1, 2, 3, 4]);
        assert!(next(&mut frames).is_none(), "nothing waits any more");
    }

    #[test]
    fn a_frame_is_closed_when_it_is_large_enough() {
        let (outbox, mut frames) = outbox(None);
        for id in 0..3 {
            outbox.try_send(envelope(id, FRAME_BYTES)).expect("there is room");
        }
        let frame = next(&mut frames).expect("envelopes wait");
        assert_eq!(frame.envelopes.len(), 1);
    }

    #[test]
    fn a_queue_with_too_many_bytes_takes_no_more_until_some_have_left() {
        let (outbox, mut frames) = outbox(None);
        let size = QUEUE_BYTES / 4;
        while outbox.try_send(envelope(0, size)).is_ok() {}
        assert_eq!(outbox.try_send(envelope(1, 1)), Err(NotTaken::Full));
        next(&mut frames).expect("envelopes wait");
        assert_eq!(outbox.try_send(envelope(1, 1)), Ok(()));
    }
}
