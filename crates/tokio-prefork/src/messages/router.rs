//! A box for each worker, whose letter is next, and where it goes: pure, the time is an argument.
//!
//! The boxes take turns, a letter each. Letters between workers are moved on here; who they come from is written by
//! us, not by the sender. One whose receiver has no room stays in front of its box, whose owner is not read meanwhile:
//! so a flooder waits for its receiver. But not for one that has taken nothing for a second: then it is lost.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::send_queue::Outbox;
use super::{
    Back, Carried, Class, Letter, MessageError, MessageLimits, MessageSender, Place, ReplyTo,
};
use prefork_supervisor::{WorkerId, WorkerTag};

/// How long a letter waits for a receiver that takes nothing.
const PATIENCE: Duration = Duration::from_secs(1);

/// Whether a worker serves its slot.
type Serves<'a> = &'a dyn Fn(WorkerId) -> bool;

/// What one step of the post brought.
#[derive(Debug)]
pub(crate) enum Turn {
    /// A letter to the primary.
    Mine(WorkerTag, Letter),
    /// A letter went from one worker to another, or was lost.
    Moved,
    /// Nothing can be done now.
    Idle,
}

/// What is under way to and from one worker.
#[derive(Debug)]
struct Mailbox {
    tag: WorkerTag,
    /// What it sent; only what came with one look, as it is not read until this is empty.
    inbox: VecDeque<Letter>,
    out: Outbox,
    /// It can still be sent something.
    open: bool,
    /// Since when its queue has been full, with nothing taken out of it.
    full_since: Option<Instant>,
}

/// All boxes.
#[derive(Debug)]
pub(super) struct Post {
    limits: MessageLimits,
    boxes: BTreeMap<WorkerId, Mailbox>,
    /// Whose turn it is; each box with letters in it, once.
    turns: VecDeque<WorkerId>,
    /// Letters wait for a receiver, and nothing else can be done.
    blocked: bool,
    lost: u64,
}

impl Post {
    pub(super) fn new(limits: MessageLimits) -> Post {
        let (boxes, turns) = (BTreeMap::new(), VecDeque::new());
        Post { limits, boxes, turns, blocked: false, lost: 0 }
    }

    pub(super) fn open(&mut self, tag: WorkerTag) {
        let (out, inbox) = (Outbox::new(self.limits), VecDeque::new());
        self.boxes.insert(tag.id, Mailbox { tag, inbox, out, open: true, full_since: None });
    }

    /// Nothing more can be sent to this worker; what it sent is still handled.
    pub(super) fn close(&mut self, id: WorkerId) {
        if let Some(mailbox) = self.boxes.get_mut(&id) {
            mailbox.open = false;
            mailbox.out = Outbox::new(self.limits);
            if mailbox.inbox.is_empty() {
                self.boxes.remove(&id);
            }
        }
    }

    /// Nothing that this worker sent is handled any more.
    pub(super) fn condemn(&mut self, id: WorkerId) {
        self.boxes.remove(&id);
        self.turns.retain(|turn| *turn != id);
    }

    /// In a forked child: drops all letters, and leaves the rest in memory as it is.
    pub(super) fn leave_to_parent(mut self) {
        for mailbox in self.boxes.values_mut() {
            if !mailbox.inbox.is_empty() {
                mailbox.inbox.clear();
            }
            if !mailbox.out.is_empty() {
                mailbox.out = Outbox::new(self.limits);
            }
        }
        std::mem::forget(self);
    }

    /// Whether anything of this worker may still come, or is here and not handled yet.
    pub(super) fn knows(&self, id: WorkerId) -> bool {
        self.boxes.contains_key(&id)
    }

    /// What this worker is to be sent.
    pub(super) fn outbox(&mut self, id: WorkerId) -> Option<&mut Outbox> {
        self.boxes.get_mut(&id).map(|mailbox| &mut mailbox.out)
    }

    pub(super) fn has_outgoing(&self, id: WorkerId) -> bool {
        self.boxes.get(&id).is_some_and(|mailbox| !mailbox.out.is_empty())
    }

    /// This worker has taken something.
    pub(super) fn taken(&mut self, id: WorkerId) {
        if let Some(mailbox) = self.boxes.get_mut(&id) {
            mailbox.full_since = None;
        }
    }

    /// Whether all that this worker sent so far is handled.
    pub(super) fn may_read(&self, id: WorkerId) -> bool {
        self.boxes.get(&id).is_some_and(|mailbox| mailbox.inbox.is_empty())
    }

    /// Whether there is something that `next` could do at once.
    pub(super) fn has_turns(&self) -> bool {
        !self.turns.is_empty() && !self.blocked
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// How many messages had no receiver so far, or one that took nothing.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    /// What this worker sent.
    pub(super) fn come(&mut self, id: WorkerId, letters: VecDeque<Letter>) {
        let Some(mailbox) = self.boxes.get_mut(&id) else { return };
        if mailbox.inbox.is_empty() && !letters.is_empty() {
            self.turns.push_back(id);
        }
        mailbox.inbox.extend(letters);
        self.blocked = false;
    }

    /// Goes on with the next letter.
    pub(super) fn next(&mut self, now: Instant, serves: Serves<'_>) -> Turn {
        for _ in 0..self.turns.len() {
            let Some(id) = self.turns.pop_front() else { break };
            let Some(mailbox) = self.boxes.get_mut(&id) else { continue };
            let Some(letter) = mailbox.inbox.pop_front() else { continue };
            let tag = mailbox.tag;
            let waits = match letter.place {
                Place::Primary => {
                    self.end_turn(id);
                    return Turn::Mine(tag, letter);
                }
                _ => self.route(id, letter, now, serves).err(),
            };
            let Some(letter) = waits else {
                self.end_turn(id);
                return Turn::Moved;
            };
            if let Some(mailbox) = self.boxes.get_mut(&id) {
                mailbox.inbox.push_front(letter);
            }
            self.turns.push_back(id);
        }
        self.blocked = !self.turns.is_empty();
        Turn::Idle
    }

    fn end_turn(&mut self, id: WorkerId) {
        let Some(mailbox) = self.boxes.get(&id) else { return };
        match (mailbox.inbox.is_empty(), mailbox.open) {
            (false, _) => self.turns.push_back(id),
            (true, false) => drop(self.boxes.remove(&id)),
            (true, true) => {}
        }
    }

    /// Moves a letter on; it comes back if it has to wait.
    fn route(
        &mut self,
        from: WorkerId,
        mut letter: Letter,
        now: Instant,
        serves: Serves<'_>,
    ) -> Result<(), Letter> {
        if letter.place == Place::Everybody {
            return self.route_to_all(from, letter, now);
        }
        let Some(to) = self.find(letter.place, serves) else {
            self.lose(from, &letter, "there is no such worker");
            return Ok(());
        };
        let Some(mailbox) = self.boxes.get_mut(&to) else { return Ok(()) };
        if let Err(e) = mailbox.out.check(&letter) {
            if e == MessageError::Full && mailbox.is_waited_for(now) {
                return Err(letter);
            }
            self.lose(from, &letter, "the receiver does not read");
            return Ok(());
        }
        letter.place = Place::Worker(from);
        let _ = mailbox.out.push(letter);
        Ok(())
    }

    fn route_to_all(&mut self, from: WorkerId, letter: Letter, now: Instant) -> Result<(), Letter> {
        let others = |id: &WorkerId, mailbox: &Mailbox| *id != from && mailbox.open;
        // All at once or none yet, so that nobody gets it twice.
        for (id, mailbox) in &mut self.boxes {
            if others(id, mailbox)
                && mailbox.out.check(&letter) == Err(MessageError::Full)
                && mailbox.is_waited_for(now)
            {
                return Err(letter);
            }
        }
        for (id, mailbox) in &mut self.boxes {
            let copy = Letter { place: Place::Worker(from), ..letter.copy() };
            if others(id, mailbox) && mailbox.out.push(copy).is_err() {
                self.lost += 1;
            }
        }
        Ok(())
    }

    /// The worker with the newest id of those at this place that serve, or else of those that do not.
    fn find(&self, place: Place, serves: Serves<'_>) -> Option<WorkerId> {
        let open = self.boxes.values().filter(|mailbox| mailbox.open);
        let here = open.filter(|mailbox| match place {
            Place::Slot(slot) => mailbox.tag.slot == slot,
            Place::Worker(id) => mailbox.tag.id == id,
            Place::Primary | Place::Everybody => false,
        });
        here.map(|mailbox| mailbox.tag.id).max_by_key(|id| (serves(*id), *id))
    }

    /// Says so to those who ask.
    fn lose(&mut self, from: WorkerId, letter: &Letter, why: &'static str) {
        self.lost += 1;
        if letter.class == Class::Request {
            let (to, id, kind) = (MessageSender::Worker(from), letter.id, letter.kind.clone());
            let why = Bytes::from_static(why.as_bytes());
            let _ = self.reply(&ReplyTo { to, id, kind }, Class::Refusal, why);
        }
    }

    /// Sends something of the primary's, and says to whom; on an error it comes back.
    pub(super) fn send(
        &mut self,
        to: Place,
        letter: Letter,
        serves: Serves<'_>,
    ) -> Result<WorkerId, Back> {
        let nobody = |letter| {
            let who = match to {
                Place::Slot(slot) => format!("at slot {slot}"),
                Place::Worker(id) => format!("number {id}"),
                Place::Primary | Place::Everybody => "the primary".to_string(),
            };
            Err(Box::new((MessageError::NoSuchWorker(who), letter)))
        };
        let Some(id) = self.find(to, serves) else { return nobody(letter) };
        let Some(mailbox) = self.boxes.get_mut(&id) else { return nobody(letter) };
        mailbox.out.push(letter).map(|()| id)
    }

    pub(super) fn reply(
        &mut self,
        to: &ReplyTo,
        class: Class,
        payload: Bytes,
    ) -> Result<(), MessageError> {
        let mut letter = to.letter(class, payload);
        let place = std::mem::replace(&mut letter.place, Place::Primary);
        self.send(place, letter, &|_| true).map(drop).map_err(|back| back.0)
    }

    /// To how many workers it goes, and to how many it does not as their queues are full.
    pub(super) fn broadcast(&mut self, letter: &Letter) -> Result<(usize, usize), MessageError> {
        let (mut sent, mut missed) = (0, 0);
        for mailbox in self.boxes.values_mut().filter(|mailbox| mailbox.open) {
            match mailbox.out.push(Letter { carried: Carried::Nothing, ..letter.copy() }) {
                Ok(()) => sent += 1,
                Err(back) if back.0 == MessageError::Full => missed += 1,
                Err(back) => return Err(back.0),
            }
        }
        self.lost += missed as u64;
        Ok((sent, missed))
    }
}

impl Mailbox {
    /// Its queue is full: whether that may pass soon.
    fn is_waited_for(&mut self, now: Instant) -> bool {
        now < *self.full_since.get_or_insert(now) + PATIENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::envelope::tests::letter;
    use prefork_supervisor::{Generation, Slot, WEB_KIND};

    fn tag(id: u64, slot: u32) -> WorkerTag {
        let (id, slot, generation) = (WorkerId(id), Slot(slot), Generation(1));
        WorkerTag { id, slot, generation, pid: None, kind: WEB_KIND }
    }

    /// Workers 1 to `workers` at slots 0 up, with queues of `queue` messages.
    fn post(workers: u64, queue: usize) -> Post {
        let mut post = Post::new(MessageLimits::default().queue_bounds(1 << 20, queue));
        (1..=workers).for_each(|id| post.open(tag(id, id as u32 - 1)));
        post
    }

    fn all(_: WorkerId) -> bool {
        true
    }

    fn to(place: Place) -> Letter {
        Letter { place, ..letter("a", 3) }
    }

    fn request(place: Place) -> Letter {
        Letter { class: Class::Request, id: 7, ..to(place) }
    }

    fn drain(post: &mut Post, id: u64) -> usize {
        let mut packets = 0;
        let outbox = post.outbox(WorkerId(id)).expect("open");
        while outbox.packet().is_some() {
            outbox.sent();
            packets += 1;
        }
        packets
    }

    /// Who the letters to the primary come from, in turn.
    fn mine(post: &mut Post) -> Vec<u64> {
        let mut from = Vec::new();
        loop {
            match post.next(Instant::now(), &all) {
                Turn::Mine(tag, _) => from.push(tag.id.0),
                Turn::Moved => {}
                Turn::Idle => return from,
            }
        }
    }

    #[test]
    fn a_flooder_does_not_starve_the_others() {
        let mut post = post(3, 10);
        post.come(WorkerId(1), (0..100).map(|_| to(Place::Primary)).collect());
        post.come(WorkerId(2), [to(Place::Primary)].into());
        post.come(WorkerId(3), [to(Place::Primary), to(Place::Primary)].into());
        assert!(!post.may_read(WorkerId(1)));
        assert_eq!(mine(&mut post)[..6], [1, 2, 3, 1, 3, 1]);
        assert!(post.may_read(WorkerId(1)) && !post.has_turns());
    }

    #[test]
    fn letters_find_the_worker_that_serves_the_slot() {
        let mut post = post(2, 10);
        // A successor at slot 0, not ready yet.
        post.open(tag(3, 0));
        let serves = |id: WorkerId| id != WorkerId(3);
        post.come(WorkerId(2), [to(Place::Slot(Slot(0)))].into());
        assert!(matches!(post.next(Instant::now(), &serves), Turn::Moved));
        assert!(post.has_outgoing(WorkerId(1)) && !post.has_outgoing(WorkerId(3)));
        post.come(WorkerId(2), [to(Place::Slot(Slot(0))), to(Place::Worker(WorkerId(1)))].into());
        drain(&mut post, 1);
        assert!(mine(&mut post).is_empty());
        assert_eq!((drain(&mut post, 3), drain(&mut post, 1)), (1, 1));
        // With nobody else there, one that does not serve yet will read it later.
        post.close(WorkerId(1));
        let sent = post.send(Place::Slot(Slot(0)), letter("a", 1), &serves);
        assert!(sent.is_ok() && post.has_outgoing(WorkerId(3)));
    }

    #[test]
    fn a_broadcast_goes_to_everybody_but_its_sender_once() {
        let mut post = post(4, 2);
        post.come(WorkerId(2), [to(Place::Everybody)].into());
        assert!(mine(&mut post).is_empty());
        let has = [1, 2, 3, 4].map(|id| post.has_outgoing(WorkerId(id)));
        assert_eq!(has, [true, false, true, true]);
        assert_eq!(post.broadcast(&letter("a", 1)), Ok((4, 0)));
        // Three have two letters now, which is all they may have.
        assert_eq!(post.broadcast(&letter("a", 1)), Ok((1, 3)));
        assert_eq!(post.lost(), 3);
    }

    #[test]
    fn a_sender_waits_for_a_full_receiver_for_a_second_and_no_longer() {
        let mut post = post(3, 1);
        let now = Instant::now();
        let twice = || [request(Place::Worker(WorkerId(2))), request(Place::Worker(WorkerId(2)))];
        post.come(WorkerId(1), twice().into());
        post.come(WorkerId(3), [to(Place::Primary)].into());
        assert!(matches!(post.next(now, &all), Turn::Moved));
        // The other one is not held up by this.
        assert!(matches!(post.next(now, &all), Turn::Mine(from, _) if from.id == WorkerId(3)));
        assert!(matches!(post.next(now, &all), Turn::Idle));
        assert!(post.is_blocked() && !post.has_turns() && !post.may_read(WorkerId(1)));
        // The receiver takes something: the sender goes on.
        assert_eq!(drain(&mut post, 2), 1);
        post.taken(WorkerId(2));
        assert!(matches!(post.next(now + PATIENCE, &all), Turn::Moved));
        assert_eq!(post.lost(), 0);
        // Now it takes nothing: those who ask are told.
        post.come(WorkerId(1), twice().into());
        assert!(matches!(post.next(now, &all), Turn::Idle));
        assert!(matches!(post.next(now + PATIENCE, &all), Turn::Moved));
        assert!(matches!(post.next(now + PATIENCE, &all), Turn::Moved));
        assert_eq!(post.lost(), 2);
        assert!(post.has_outgoing(WorkerId(1)) && post.may_read(WorkerId(1)));
    }

    #[test]
    fn a_request_to_nobody_is_refused() {
        let mut post = post(1, 4);
        post.come(
            WorkerId(1),
            [request(Place::Slot(Slot(9))), to(Place::Worker(WorkerId(9)))].into(),
        );
        assert!(mine(&mut post).is_empty());
        assert_eq!((post.lost(), drain(&mut post, 1)), (2, 1));
        let sent = post.send(Place::Worker(WorkerId(9)), letter("a", 1), &all);
        assert!(sent.is_err_and(|back| matches!(back.0, MessageError::NoSuchWorker(_))));
    }

    #[test]
    fn what_the_dead_sent_is_handled_and_what_the_condemned_sent_is_not() {
        let mut post = post(2, 4);
        for id in [1, 2] {
            post.come(WorkerId(id), [to(Place::Primary), to(Place::Primary)].into());
        }
        post.close(WorkerId(1));
        post.condemn(WorkerId(2));
        assert_eq!(mine(&mut post), [1, 1]);
        assert!(post.boxes.is_empty() && post.turns.is_empty());
    }

    #[test]
    fn queues_are_bounded_in_messages_and_bytes_and_a_large_one_always_fits_alone() {
        let mut post =
            Post::new(MessageLimits::default().queue_bounds(1000, 3).max_message_bytes(5000));
        post.open(tag(1, 0));
        let mut send = |size| {
            let sent = post.send(Place::Worker(WorkerId(1)), letter("a", size), &all);
            sent.map_err(|back| {
                assert_eq!(back.1.payload.len(), size, "it comes back");
                back.0
            })
        };
        assert_eq!(send(5000), Ok(WorkerId(1)));
        assert_eq!(send(0), Err(MessageError::Full));
        assert_eq!(send(5064), Err(MessageError::TooLarge { size: 5064, most: 5000 }));
        drain(&mut post, 1);
        let mut send =
            |size| post.send(Place::Worker(WorkerId(1)), letter("a", size), &all).is_ok();
        assert_eq!([1, 1, 1, 1].map(&mut send), [true, true, true, false]);
    }
}
