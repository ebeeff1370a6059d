//! The one fsync stream of a store: requests of all groups that wait together are answered by one fsync.
//!
//! While an fsync runs, requests gather; the next one answers them all. So the number of fsyncs does not grow with the
//! number of groups or devices. Requests are answered in the order in which they came.

use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use super::failure::Failure;
use super::{Error, OnDurable};
use crate::metrics;

/// Raft has few appends of a group in flight, so this is reached only if the disk hangs; callers then wait with it.
const WAITING_MAX: usize = 64 * 1024;

/// Makes everything durable that was written before the call.
pub(super) type Flush = Box<dyn FnMut() -> Result<(), Error> + Send>;

/// The thread that does the fsyncs. Dropping it answers what waits.
#[derive(Debug)]
pub(super) struct Commit {
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
    taken: Condvar,
}

#[derive(Default)]
struct Waiting {
    requests: Vec<OnDurable>,
    is_closed: bool,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Waiting({} requests)", self.requests.len())
    }
}

impl Commit {
    pub(super) fn start(flush: Flush, failure: Failure) -> Result<Self, Error> {
        let queue = Arc::new(Queue::default());
        let thread = thread::Builder::new()
            .name("drover-commit".into())
            .spawn({
                let queue = Arc::clone(&queue);
                move || queue.run(flush, &failure)
            })
            .map_err(|error| Error::Io { what: format!("no thread for fsyncs: {error}") })?;
        Ok(Self { queue, thread: Some(thread) })
    }

    pub(super) fn sync(&self, done: OnDurable) {
        let mut waiting = self.queue.lock();
        while waiting.requests.len() >= WAITING_MAX && !waiting.is_closed {
            waiting = self.queue.taken.wait(waiting).expect(NOT_POISONED);
        }
        if waiting.is_closed {
            drop(waiting);
            return done(Err(closed()));
        }
        waiting.requests.push(done);
        self.queue.arrived.notify_one();
    }
}

impl Drop for Commit {
    fn drop(&mut self) {
        self.queue.close();
        // The last handle of a store may be in a request, which this very thread answers and drops.
        let thread =
            self.thread.take().filter(|thread| thread.thread().id() != thread::current().id());
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that does the fsyncs had panicked");
        }
    }
}

const NOT_POISONED: &str = "nothing panics while the queue of fsyncs is locked";

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().expect(NOT_POISONED)
    }

    fn close(&self) {
        self.lock().is_closed = true;
        self.arrived.notify_all();
        self.taken.notify_all();
    }

    fn run(&self, mut flush: Flush, failure: &Failure) {
        // A request that panics must not leave the others waiting for ever.
        let _closing = CloseOnExit(self);
        while let Some(requests) = self.take() {
            let result = failure.check().and_then(|()| {
                timed(requests.len(), &mut flush).map_err(|error| failure.note(error))
            });
            for done in requests {
                done(result.clone());
            }
        }
    }

    /// Everything that waits; `None` when the store is closed and nothing is left.
    fn take(&self) -> Option<Vec<OnDurable>> {
        let mut waiting = self.lock();
        while waiting.requests.is_empty() && !waiting.is_closed {
            waiting = self.arrived.wait(waiting).expect(NOT_POISONED);
        }
        self.taken.notify_all();
        let requests = mem::take(&mut waiting.requests);
        (!requests.is_empty()).then_some(requests)
    }
}

struct CloseOnExit<'a>(&'a Queue);

impl Drop for CloseOnExit<'_> {
    fn drop(&mut self) {
        self.0.close();
        let requests = mem::take(&mut self.0.lock().requests);
        for done in requests {
            done(Err(closed()));
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a metric of the real disk, not seen by simulation")]
fn timed(requests: usize, flush: &mut Flush) -> Result<(), Error> {
    let started = std::time::Instant::now();
    let result = flush();
    metrics::fsynced(started.elapsed(), requests);
    result
}

fn closed() -> Error {
    Error::Io { what: "it is closed".into() }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    type Answer = (u32, Result<(), Error>);

    /// The other ends of a commit whose fsyncs wait for a permission and then answer what the permission says.
    struct Gate {
        permit: mpsc::Sender<Result<(), Error>>,
        begun: mpsc::Receiver<()>,
        answer: mpsc::Sender<Answer>,
        answers: mpsc::Receiver<Answer>,
    }

    impl Gate {
        fn start() -> (Commit, Self) {
            let (permit, permits) = mpsc::channel();
            let (begin, begun) = mpsc::channel();
            let flush = move || {
                begin.send(()).unwrap();
                permits.recv().unwrap_or(Ok(()))
            };
            let commit = Commit::start(Box::new(flush), Failure::default()).unwrap();
            let (answer, answers) = mpsc::channel();
            (commit, Self { permit, begun, answer, answers })
        }

        fn request(&self, commit: &Commit, number: u32) {
            let answer = self.answer.clone();
            commit.sync(Box::new(move |result| answer.send((number, result)).unwrap()));
        }

        /// The same, and waits until its fsync has begun.
        fn request_and_begin(&self, commit: &Commit, number: u32) {
            self.request(commit, number);
            self.begun.recv().unwrap();
        }
    }

    #[test]
    fn requests_that_wait_together_are_answered_by_one_fsync_in_order() {
        let (commit, gate) = Gate::start();
        gate.request_and_begin(&commit, 0);
        for number in 1..10 {
            gate.request(&commit, number);
        }
        gate.permit.send(Ok(())).unwrap();
        gate.begun.recv().unwrap();
        gate.permit.send(Ok(())).unwrap();
        let numbers: Vec<u32> = gate.answers.iter().take(10).map(|(number, _)| number).collect();
        assert_eq!(numbers, (0..10).collect::<Vec<_>>());
        drop(commit);
        assert!(gate.begun.try_recv().is_err(), "ten requests took more than two fsyncs");
    }

    #[test]
    fn a_failed_fsync_fails_every_request_and_is_never_tried_again() {
        let (commit, gate) = Gate::start();
        gate.request_and_begin(&commit, 0);
        gate.request(&commit, 1);
        let broken = Error::Io { what: "no fsync".into() };
        gate.permit.send(Err(broken.clone())).unwrap();
        assert_eq!(gate.answers.recv().unwrap(), (0, Err(broken.clone())));
        assert_eq!(gate.answers.recv().unwrap(), (1, Err(broken.clone())));
        gate.request(&commit, 2);
        assert_eq!(gate.answers.recv().unwrap(), (2, Err(broken)));
        drop(commit);
        assert!(gate.begun.try_recv().is_err(), "the fsync was tried again");
    }

    #[test]
    fn closing_answers_what_waits() {
        let (commit, gate) = Gate::start();
        gate.request_and_begin(&commit, 0);
        gate.request(&commit, 1);
        drop(gate.permit);
        drop(commit);
        drop(gate.answer);
        assert_eq!(gate.answers.iter().map(|(number, _)| number).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn a_request_that_panics_leaves_nobody_waiting() {
        let (commit, gate) = Gate::start();
        commit.sync(Box::new(|_| panic!("a request that panics, on purpose")));
        gate.begun.recv().unwrap();
        gate.request(&commit, 1);
        gate.permit.send(Ok(())).unwrap();
        assert!(gate.answers.recv().unwrap().1.is_err());
        gate.request(&commit, 2);
        assert!(gate.answers.recv().unwrap().1.is_err());
    }
}
