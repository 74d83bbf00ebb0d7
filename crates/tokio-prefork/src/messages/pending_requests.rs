//! Requests that wait for their answers. An answer whose request is not here any more is thrown away.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use tokio::sync::oneshot;

use super::{Class, Letter, Message, MessageError, MessageSender, Place};

type Answer = Result<Message, MessageError>;

/// One request.
#[derive(Debug)]
struct Pending {
    asked: Place,
    answer: oneshot::Sender<Answer>,
}

/// All that this worker has asked and that is not answered.
#[derive(Debug)]
pub(super) struct Requests {
    next: Cell<u64>,
    pending: RefCell<HashMap<u64, Pending>>,
    late: Cell<u64>,
}

/// A request that was made: it is forgotten when this is dropped.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) id: u64,
    pub(super) answer: oneshot::Receiver<Answer>,
    of: Rc<Requests>,
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.of.pending.borrow_mut().remove(&self.id);
    }
}

impl Requests {
    pub(super) fn new() -> Requests {
        // Ids that another worker cannot guess, as it could answer in the place of the one that was asked.
        let first = prefork_os::system::random_u64().unwrap_or(1);
        Requests { next: Cell::new(first), pending: RefCell::default(), late: Cell::new(0) }
    }

    /// A request to `asked` that is about to be sent.
    pub(super) fn ask(self: &Rc<Requests>, asked: Place) -> Asked {
        let id = self.next.get();
        self.next.set(id.wrapping_add(1));
        let (sender, answer) = oneshot::channel();
        self.pending.borrow_mut().insert(id, Pending { asked, answer: sender });
        Asked { id, answer, of: Rc::clone(self) }
    }

    /// An answer came, or a refusal: of the one that was asked, or on the way, by the primary.
    pub(super) fn answer(&self, from: MessageSender, letter: Letter) {
        let mut pending = self.pending.borrow_mut();
        let right = |asked: Place| match (asked, from) {
            (Place::Primary | Place::Everybody, from) => from == MessageSender::Primary,
            (Place::Worker(_) | Place::Slot(_), MessageSender::Primary) => {
                letter.class == Class::Refusal
            }
            (Place::Worker(id), from) => from == MessageSender::Worker(id),
            (Place::Slot(_), _) => true,
        };
        match pending.get(&letter.id).map(|one| right(one.asked)) {
            Some(true) => {}
            Some(false) => return,
            None => return self.late.set(self.late.get() + 1),
        }
        let Some(Pending { answer, .. }) = pending.remove(&letter.id) else { return };
        // Nobody may wait any more.
        let _ = answer.send(match letter.class {
            Class::Refusal => {
                Err(MessageError::Refused(String::from_utf8_lossy(&letter.payload).into_owned()))
            }
            _ => Ok(Message::new(from, letter)),
        });
    }

    /// Answers that came too late so far.
    pub(super) fn late(&self) -> u64 {
        self.late.get()
    }

    /// Nothing will be answered any more.
    pub(super) fn close(&self) {
        for (_, pending) in self.pending.borrow_mut().drain() {
            let _ = pending.answer.send(Err(MessageError::Closed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::envelope::tests::letter;
    use super::*;
    use prefork_supervisor::{Slot, WorkerId};

    fn reply(class: Class, id: u64) -> Letter {
        Letter { class, id, ..letter("a", 2) }
    }

    #[test]
    fn an_answer_counts_once_and_only_from_the_one_that_was_asked() {
        let requests = Rc::new(Requests::new());
        let mut asked = requests.ask(Place::Worker(WorkerId(3)));
        let id = asked.id;
        requests.answer(MessageSender::Worker(WorkerId(4)), reply(Class::Reply, id));
        requests.answer(MessageSender::Primary, reply(Class::Reply, id));
        assert!(asked.answer.try_recv().is_err(), "forged");
        requests.answer(MessageSender::Worker(WorkerId(3)), reply(Class::Reply, id));
        let message = asked.answer.try_recv().expect("answered").expect("an answer");
        assert_eq!(message.from(), MessageSender::Worker(WorkerId(3)));
        requests.answer(MessageSender::Worker(WorkerId(3)), reply(Class::Reply, id));
        assert_eq!(requests.late(), 1);
    }

    #[test]
    fn a_late_answer_is_thrown_away_and_does_not_answer_another_request() {
        let requests = Rc::new(Requests::new());
        let late = requests.ask(Place::Primary).id;
        let mut asked = requests.ask(Place::Primary);
        requests.answer(MessageSender::Primary, reply(Class::Reply, late));
        assert_eq!(requests.late(), 1);
        assert!(asked.answer.try_recv().is_err());
        requests.close();
        assert!(matches!(asked.answer.try_recv(), Ok(Err(MessageError::Closed))));
    }

    #[test]
    fn the_primary_may_refuse_for_a_worker() {
        let requests = Rc::new(Requests::new());
        let mut asked = requests.ask(Place::Slot(Slot(1)));
        requests.answer(MessageSender::Primary, reply(Class::Refusal, asked.id));
        assert!(matches!(asked.answer.try_recv(), Ok(Err(MessageError::Refused(_)))));
    }
}
