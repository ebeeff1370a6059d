//! Packet ids of what the hub publishes at quality 1.

/// How many of the hub's publishes may be without a PUBACK.
const OPEN_MAX: usize = 64;

#[derive(Debug, Default)]
pub(super) struct PacketIds {
    last: u16,
    open: Vec<u16>,
}

impl PacketIds {
    /// An id that is not in use; `None` if the device owes too many PUBACKs. What is sent then goes at quality 0: the
    /// hub may choose a lower one than was granted, and a device that does not answer cannot make it wait.
    pub(super) fn allocate(&mut self) -> Option<u16> {
        if self.open.len() >= OPEN_MAX {
            return None;
        }
        // Ends, because far fewer are open than there are ids.
        loop {
            self.last = self.last.wrapping_add(1);
            if self.last != 0 && !self.open.contains(&self.last) {
                self.open.push(self.last);
                return Some(self.last);
            }
        }
    }

    /// A PUBACK has come. One for an id that is not open means nothing (S-9).
    pub(super) fn release(&mut self, id: u16) {
        self.open.retain(|open| *open != id);
        if self.open.is_empty() {
            self.open = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_used_again_only_after_its_puback() {
        let mut ids = PacketIds { last: u16::MAX - 1, open: vec![1] };
        assert_eq!(ids.allocate(), Some(u16::MAX));
        assert_eq!(ids.allocate(), Some(2), "0 is no id and 1 is open");
    }

    #[test]
    fn a_device_that_never_answers_uses_up_no_more_than_the_limit() {
        let mut ids = PacketIds::default();
        let allocated: Vec<_> = std::iter::from_fn(|| ids.allocate()).collect();
        assert_eq!(allocated.len(), OPEN_MAX);
        ids.release(999);
        assert_eq!(ids.allocate(), None);
        ids.release(7);
        assert_eq!(ids.allocate(), Some(65));
    }
}
