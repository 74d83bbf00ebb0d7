//! The streams of one connection that are in flight.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::load::connection::PendingRequest;
use crate::load::http_response::{BODY_PREFIX_LEN, ParsedResponse, parse_body_pid};
use crate::load::request_failure::RequestFailure;

/// A stream that has ended.
#[derive(Debug)]
pub(crate) struct StreamEvent {
    pub(crate) sent: PendingRequest,
    pub(crate) outcome: Result<ParsedResponse, StreamFailure>,
}

/// Why a stream has no response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamFailure {
    /// The server says that it has not processed the request (RFC 9113, 6.8 and 8.7), which may be sent again.
    Unprocessed,
    Failed(RequestFailure),
}

/// A request in flight and what has come of its response.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) sent: PendingRequest,
    pub(super) is_head_request: bool,
    /// Rest of the request's body.
    pub(super) unsent_body: Bytes,
    /// Bytes of the body that the server allows; below 0 if it has taken back what was used.
    pub(super) send_window: i64,
    /// Whether the head of the final response has come.
    pub(super) has_head: bool,
    pub(super) response: ParsedResponse,
    /// Length of the response's body according to its head.
    pub(super) expected_length: Option<u64>,
    pub(super) body_length: u64,
    /// Bytes that the server has not been told it may send again.
    pub(super) unacknowledged: u32,
    body_prefix: [u8; BODY_PREFIX_LEN],
}

impl Stream {
    pub(super) fn new(sent: PendingRequest, is_head_request: bool, send_window: i64) -> Stream {
        Stream {
            sent,
            is_head_request,
            unsent_body: Bytes::new(),
            send_window,
            has_head: false,
            response: ParsedResponse::EMPTY,
            expected_length: None,
            body_length: 0,
            unacknowledged: 0,
            body_prefix: [0; BODY_PREFIX_LEN],
        }
    }

    /// Adds a part of the response's body.
    pub(super) fn add_body(&mut self, data: &[u8]) {
        let room = self.body_prefix.get_mut(self.body_length as usize..).unwrap_or_default();
        let kept = room.len().min(data.len());
        room[..kept].copy_from_slice(&data[..kept]);
        self.body_length += data.len() as u64;
        self.response.bytes += data.len() as u64;
    }

    /// Returns the response, which has ended.
    pub(super) fn complete_response(&self) -> ParsedResponse {
        let length = (self.body_length as usize).min(BODY_PREFIX_LEN);
        let pid = self.response.pid.or_else(|| parse_body_pid(&self.body_prefix[..length]));
        ParsedResponse { pid, ..self.response }
    }
}

/// In place of a slot: the stream has ended.
const ENDED: u32 = u32::MAX;
/// Largest identifier of a stream.
const MAX_STREAM_ID: u32 = (1 << 31) - 1;

/// The streams in flight by their identifiers, which are odd and follow each other.
#[derive(Debug)]
pub(super) struct StreamTable {
    slots: Vec<Stream>,
    /// Slots of streams that have ended.
    free: Vec<u32>,
    /// Slot of each stream from `first_id` on.
    by_id: VecDeque<u32>,
    first_id: u32,
}

impl StreamTable {
    pub(super) fn new() -> StreamTable {
        StreamTable { slots: Vec::new(), free: Vec::new(), by_id: VecDeque::new(), first_id: 1 }
    }

    /// Returns the number of streams in flight.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Returns the identifier of the next stream; `None` if there is no further one.
    pub(super) fn next_id(&self) -> Option<u32> {
        Some(self.first_id + 2 * self.by_id.len() as u32).filter(|id| *id <= MAX_STREAM_ID)
    }

    /// Adds the stream with the next identifier.
    pub(super) fn add(&mut self, stream: Stream) {
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = stream;
                slot
            }
            None => {
                self.slots.push(stream);
                self.slots.len() as u32 - 1
            }
        };
        self.by_id.push_back(slot);
    }

    /// Returns whether a stream was opened, and may have ended since.
    pub(super) fn was_opened(&self, id: u32) -> bool {
        id % 2 == 1 && self.next_id().is_none_or(|next| id < next)
    }

    /// Returns a stream in flight.
    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut Stream> {
        // An even difference: identifiers of the server are not passed.
        let place = id.checked_sub(self.first_id)? / 2;
        let slot = *self.by_id.get(place as usize)?;
        self.slots.get_mut(slot as usize)
    }

    /// Ends a stream.
    pub(super) fn remove(&mut self, id: u32) {
        let Some(place) = id.checked_sub(self.first_id).map(|after| after / 2) else { return };
        if let Some(slot) = self.by_id.get_mut(place as usize).filter(|slot| **slot != ENDED) {
            self.free.push(std::mem::replace(slot, ENDED));
        }
        while self.by_id.front() == Some(&ENDED) {
            self.by_id.pop_front();
            self.first_id += 2;
        }
    }

    /// Returns the streams in flight with their identifiers, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Stream)> {
        let in_flight = self.by_id.iter().enumerate().filter(|(_, slot)| **slot != ENDED);
        in_flight.map(|(at, slot)| (self.first_id + 2 * at as u32, &self.slots[*slot as usize]))
    }

    /// Changes how much the server allows on each stream.
    pub(super) fn change_send_windows(&mut self, difference: i64) {
        self.slots.iter_mut().for_each(|stream| stream.send_window += difference);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_found_by_their_identifiers_until_they_end() {
        let mut table = StreamTable::new();
        let stream =
            |due| Stream::new(PendingRequest { due, ..PendingRequest::default() }, false, 0);
        for due in [1, 3, 5] {
            assert_eq!(table.next_id(), Some(due as u32));
            table.add(stream(due));
        }
        table.remove(3);
        table.remove(3);
        let ids = |table: &StreamTable| table.iter().map(|(id, _)| id).collect::<Vec<_>>();
        assert_eq!((ids(&table), table.len()), (vec![1, 5], 2));
        table.add(stream(7));
        table.remove(1);
        table.remove(3);
        assert_eq!((ids(&table), table.len(), table.next_id()), (vec![5, 7], 2, Some(9)));
        for (id, due) in [(5, Some(5)), (7, Some(7)), (1, None), (3, None), (9, None)] {
            assert_eq!(table.get_mut(id).map(|stream| stream.sent.due), due);
            assert_eq!(table.was_opened(id), id != 9);
        }
        assert!(!table.was_opened(2));
    }
}
