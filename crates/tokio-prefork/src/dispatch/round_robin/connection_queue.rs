//! The queue of new connections from the primary to one worker, under `round-robin`: a SOCK_SEQPACKET pair of
//! its own, of which the primary keeps *both* ends and the worker has a copy of the reading one.
//!
//! ```text
//! 00 + descriptor     a TCP connection
//! 01 + descriptor     a connection over a Unix socket
//! 02                  nothing; whether it is still there tells whether the worker reads
//! ```
//!
//! A connection is in one message, and a message is read once: by the worker, whose connection it is then, or
//! by the primary, which takes it back for another. So the kernel decides who has it, whoever dies, freezes or
//! is slow in between; no word says that it was taken, and no copy has to be kept until then. What lies in the
//! queue outlives the worker, and the exec of an upgrade. A worker that does as it likes can read its own queue
//! and nothing else.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use prefork_os::fd_passing;
use prefork_os::fd_passing::{
    PassedFd, ReceivedMessage, create_seqpacket_pair, receive_trusted_message, send_message,
};

/// What the kernel may use for the messages of one queue, which is about one kilobyte for each. The primary is
/// woken when it is down to a quarter.
const ROOM: usize = 16 * 1024;

const PROBE: u8 = 2;

/// A connection that nobody has begun to serve.
#[derive(Debug)]
pub(crate) struct Newcomer {
    pub(crate) fd: OwnedFd,
    /// Over a Unix socket, not TCP.
    pub(crate) unix: bool,
}

/// The primary's side of one worker's queue.
#[derive(Debug)]
pub(crate) struct Queue {
    sending: OwnedFd,
    reading: OwnedFd,
}

/// What reading a queue brought.
#[derive(Debug)]
pub(crate) enum Dealt {
    One(Newcomer),
    /// Nothing is there.
    Nothing,
    /// What the primary puts in to see whether it is read.
    Probe,
    /// There was one, but no descriptor was left for it.
    Lost,
    /// Nobody sends any more.
    End,
}

impl Queue {
    pub(crate) fn new() -> io::Result<Queue> {
        let (sending, reading) = create_seqpacket_pair()?;
        fd_passing::limit_send_buffer(&sending, ROOM)?;
        Ok(Queue { sending, reading })
    }

    /// A queue that another image of the primary made, by both its ends.
    pub(crate) fn inherit(sending: OwnedFd, reading: OwnedFd) -> Queue {
        Queue { sending, reading }
    }

    /// In the worker: its end.
    pub(crate) fn into_reader(self) -> OwnedFd {
        self.reading
    }

    /// Both ends, the sending one first.
    pub(crate) fn ends(&self) -> [BorrowedFd<'_>; 2] {
        [self.sending.as_fd(), self.reading.as_fd()]
    }

    /// Puts copies of `newcomers` in, without waiting, and returns how many there was room for. An error means
    /// that the worker has broken its queue.
    pub(crate) fn put<'a>(
        &self,
        newcomers: impl Iterator<Item = &'a Newcomer>,
    ) -> io::Result<usize> {
        let parcels: Vec<_> = newcomers.map(|one| (u8::from(one.unix), one.fd.as_fd())).collect();
        let mut put = 0;
        for some in parcels.chunks(fd_passing::MAX_FDS_PER_SEND) {
            let sent = fd_passing::send_fds(&self.sending, some)?;
            put += sent;
            if sent < some.len() {
                break;
            }
        }
        Ok(put)
    }

    /// Puts in what the worker reads and forgets. If it does not, this is told by `waiting`.
    pub(crate) fn probe(&self) {
        // There is room, unless the worker has broken its queue, which comes out when it is dealt to.
        let _ = send_message(&self.sending, &[PROBE], None);
    }

    /// How many the worker has not taken yet.
    pub(crate) fn waiting(&self) -> usize {
        // One byte each.
        prefork_os::fd::unread_bytes(&self.reading).unwrap_or(0)
    }

    /// Takes back what the worker has not taken yet, oldest first, and how many were lost on the way.
    pub(crate) fn take_back(&self) -> (Vec<Newcomer>, usize) {
        let (mut back, mut lost) = (Vec::new(), 0);
        loop {
            match read(&self.reading) {
                Ok(Dealt::One(newcomer)) => back.push(newcomer),
                Ok(Dealt::Lost) => lost += 1,
                Ok(Dealt::Probe) => {}
                Ok(Dealt::Nothing | Dealt::End) | Err(_) => return (back, lost),
            }
        }
    }
}

/// Reads one connection from the reading end of a queue, without waiting.
pub(crate) fn read(reading: impl AsFd) -> io::Result<Dealt> {
    let mut byte = [0u8];
    Ok(match receive_trusted_message(reading, &mut byte) {
        Ok(ReceivedMessage::Message(_, PassedFd::One(fd))) => {
            Dealt::One(Newcomer { fd, unix: byte[0] != 0 })
        }
        Ok(ReceivedMessage::Message(_, PassedFd::None)) if byte[0] == PROBE => Dealt::Probe,
        Ok(ReceivedMessage::Message(..) | ReceivedMessage::Truncated) => Dealt::Lost,
        Ok(ReceivedMessage::Closed) => Dealt::End,
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Dealt::Nothing,
        Err(e) => return Err(e),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    fn newcomer(unix: bool) -> (Newcomer, UnixStream) {
        let (near, far) = UnixStream::pair().expect("connection");
        (Newcomer { fd: near.into(), unix }, far)
    }

    #[test]
    fn what_the_worker_has_not_read_can_be_taken_back_and_is_nowhere_else() {
        let queue = Queue::new().expect("queue");
        let worker = queue.reading.try_clone().expect("copy");
        let (all, mut far): (Vec<_>, Vec<_>) =
            [false, true, false].map(newcomer).into_iter().unzip();
        assert_eq!(queue.put(all.iter()).expect("put"), 3);
        drop(all);
        let got = read(&worker).expect("read");
        assert!(matches!(got, Dealt::One(Newcomer { unix: false, .. })), "{got:?}");
        assert_eq!(queue.waiting(), 2);
        queue.probe();
        assert_eq!(queue.waiting(), 3);
        let (back, lost) = queue.take_back();
        assert_eq!((back.len(), lost, queue.waiting()), (2, 0, 0));
        assert!(back[0].unix && !back[1].unix);
        drop((got, back));
        queue.probe();
        assert!(matches!(read(&worker).expect("read"), Dealt::Probe));
        // No copy is left anywhere, or this would wait for ever.
        far.iter_mut().for_each(|far| assert_eq!(far.read(&mut [0]).expect("the end"), 0));
    }

    #[test]
    fn the_queue_outlives_either_side() {
        let queue = Queue::new().expect("queue");
        let worker = queue.reading.try_clone().expect("copy");
        let (one, _far) = newcomer(false);
        queue.put([&one, &one].into_iter()).expect("put");
        let dead = worker.try_clone().expect("copy");
        drop(dead);
        assert_eq!(queue.waiting(), 2);
        drop(queue);
        for _ in 0..2 {
            assert!(matches!(read(&worker).expect("read"), Dealt::One(_)));
        }
        assert!(matches!(read(&worker).expect("read"), Dealt::End));
    }

    #[test]
    fn a_queue_holds_a_few_and_then_no_more() {
        let queue = Queue::new().expect("queue");
        let (one, _far) = newcomer(false);
        let put = queue.put(std::iter::repeat_n(&one, 1000)).expect("put");
        assert!((8..100).contains(&put), "{put}");
        assert_eq!((queue.waiting(), queue.put([&one].into_iter()).expect("put")), (put, 0));
    }
}
