//! One session as its node holds it: what goes into its queue, and in which order.
//!
//! A desired patch that skips a version ends the session, because the device must read its twin again; a delivery from the
//! mailbox that skips one is dropped, and is sent again with what is missing. A session whose queue is full is ended too: its
//! queue is dropped, which its connection sees as the end.

use drover_core::delivery::{Delivery, EndReason, SentCommand};
use drover_core::ids::{DeliveryNumber, SessionEpoch, Version};
use tokio::sync::mpsc;

#[derive(Debug)]
pub(super) struct Held {
    pub(super) epoch: SessionEpoch,
    deliveries: mpsc::Sender<Box<Delivery>>,
    /// The newest desired version that was put into the queue.
    sent: Option<Version>,
    /// The newest desired version that the device has been sent or has read.
    pub(super) seen: Option<Version>,
    /// The newest delivery from the mailbox that was put into the queue.
    pub(super) commands: DeliveryNumber,
}

/// Whether a session goes on after a delivery.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Stays,
    /// It stays, and lacks a delivery from its mailbox.
    IsBehind,
    /// It stays, and has not taken the delivery, which is lost to it.
    Refuses,
    Ended,
}

impl Held {
    /// A session that has not been sent anything.
    pub(super) fn new(epoch: SessionEpoch, deliveries: mpsc::Sender<Box<Delivery>>) -> Self {
        let commands = DeliveryNumber::default();
        Self { epoch, deliveries, sent: None, seen: None, commands }
    }

    pub(super) fn take(&mut self, delivery: Delivery) -> Next {
        match delivery {
            Delivery::End(reason) => self.end(reason),
            Delivery::Desired { version, patch } => self.desired(version, patch),
            Delivery::Command(sent) => self.command(sent),
            Delivery::Call(call) => {
                match self.deliveries.try_send(Box::new(Delivery::Call(call))) {
                    Ok(()) => Next::Stays,
                    Err(_) => Next::Refuses,
                }
            }
        }
    }

    /// A full queue ends with its sender, so the connection learns of it either way.
    pub(super) fn end(&mut self, reason: EndReason) -> Next {
        drop(self.deliveries.try_send(Box::new(Delivery::End(reason))));
        Next::Ended
    }

    fn desired(&mut self, version: Version, patch: drover_core::document::Object) -> Next {
        if self.sent.is_some_and(|sent| version <= sent) {
            // Receivers expect repeats.
            return Next::Stays;
        }
        if self.seen.is_some_and(|seen| version > seen.next()) {
            return self.end(EndReason::Gap);
        }
        if self.deliveries.try_send(Box::new(Delivery::Desired { version, patch })).is_err() {
            return self.end(EndReason::Gap);
        }
        self.sent = Some(version);
        self.seen = self.seen.max(self.sent);
        Next::Stays
    }

    fn command(&mut self, sent: Box<SentCommand>) -> Next {
        let number = sent.number;
        if number <= self.commands {
            // Receivers expect repeats.
            return Next::Stays;
        }
        if sent.follows > self.commands {
            return Next::IsBehind;
        }
        if self.deliveries.try_send(Box::new(Delivery::Command(sent))).is_err() {
            return self.end(EndReason::Gap);
        }
        self.commands = number;
        Next::Stays
    }
}
