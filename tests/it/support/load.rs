//! Many clients at once, who count what happens to them and never try a request again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::http::{Address, Client, Failure, Response};
use super::wait::{self, DEADLINE};

/// What each client does.
#[derive(Debug, Clone)]
pub struct Load {
    to: Address,
    clients: usize,
    post: bool,
    keep_alive: bool,
    think: bool,
    /// Being refused is the end of the server, not a failure.
    until_refused: bool,
}

/// Clients at work.
pub struct Running {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Tally>>,
}

/// What happened to them.
#[derive(Debug, Default)]
pub struct Tally {
    pub ok: u64,
    pub refused: u64,
    /// Connections that the server ended between two requests, or said that it would.
    pub ended: u64,
    /// Requests that were sent and not answered as they should, by kind.
    pub failed: BTreeMap<Failure, u64>,
}

impl Load {
    /// Clients that GET `/` on connections they keep.
    pub fn keep_alive(to: &Address, clients: usize) -> Load {
        Load {
            to: to.clone(),
            clients,
            post: false,
            keep_alive: true,
            think: false,
            until_refused: false,
        }
    }

    /// Clients that make a connection for each request.
    pub fn new_connections(to: &Address, clients: usize) -> Load {
        Load { keep_alive: false, ..Load::keep_alive(to, clients) }
    }

    /// POST to `/echo`, and check what comes back.
    pub fn posting(self) -> Load {
        Load { post: true, ..self }
    }

    /// Up to ten milliseconds between requests.
    pub fn thinking(self) -> Load {
        Load { think: true, ..self }
    }

    /// A client that is refused goes home.
    pub fn until_refused(self) -> Load {
        Load { until_refused: true, ..self }
    }

    pub fn start(&self) -> Running {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let threads = (0..self.clients)
            .map(|number| {
                let (load, stop, answered) = (self.clone(), stop.clone(), answered.clone());
                std::thread::spawn(move || load.one_client(number, &stop, &answered))
            })
            .collect();
        Running { stop, answered, threads }
    }

    fn one_client(&self, number: usize, stop: &AtomicBool, answered: &AtomicU64) -> Tally {
        let give_up = Instant::now() + 4 * DEADLINE;
        let mut tally = Tally::default();
        let mut kept: Option<Client> = None;
        let mut turn = number;
        while !stop.load(Relaxed) && Instant::now() < give_up {
            // A connection that the server has ended between requests is no failure if we see it in time.
            let open = kept.take().filter(|client| {
                let closed = client.is_closed();
                tally.ended += u64::from(closed);
                !closed
            });
            let mut client = match open.map_or_else(|| Client::connect(&self.to), Ok) {
                Ok(client) => client,
                Err(Failure::Refused) if self.until_refused => break,
                Err(Failure::Refused) => {
                    tally.refused += 1;
                    continue;
                }
                Err(failure) => {
                    *tally.failed.entry(failure).or_default() += 1;
                    continue;
                }
            };
            turn += 1;
            match self.one_request(&mut client, turn) {
                Ok(response) => {
                    tally.ok += 1;
                    answered.fetch_add(1, Relaxed);
                    tally.ended += u64::from(self.keep_alive && response.closes());
                    kept = (self.keep_alive && !response.closes()).then_some(client);
                }
                Err(failure) => *tally.failed.entry(failure).or_default() += 1,
            }
            if self.think {
                std::thread::park_timeout(Duration::from_millis(turn as u64 * 7 % 11));
            }
        }
        tally
    }

    fn one_request(&self, client: &mut Client, turn: usize) -> Result<Response, Failure> {
        if !self.post {
            let response = client.get("/")?;
            return check(response, |r| r.body.starts_with(b"Handled by PID "));
        }
        let body = format!("turn {turn}");
        let response = client.post("/echo", body.as_bytes())?;
        check(response, |r| r.body == body.as_bytes())
    }
}

fn check(response: Response, right: impl Fn(&Response) -> bool) -> Result<Response, Failure> {
    if response.status == 200 && right(&response) {
        return Ok(response);
    }
    Err(Failure::Malformed(format!("{} {:?}", response.status, response.text())))
}

impl Running {
    /// Waits until so many more requests have been answered: the load is really there.
    #[track_caller]
    pub fn wait_answered(&self, more: u64) {
        let goal = self.answered.load(Relaxed) + more;
        wait::until(&format!("{more} more answers"), || self.answered.load(Relaxed) >= goal);
    }

    /// Lets every client finish its request, and adds up.
    pub fn stop(self) -> Tally {
        self.stop.store(true, Relaxed);
        self.join()
    }

    /// Waits for clients that go home by themselves.
    pub fn join(self) -> Tally {
        let mut sum = Tally::default();
        for thread in self.threads {
            let tally = thread.join().expect("a client panicked");
            sum.ok += tally.ok;
            sum.refused += tally.refused;
            sum.ended += tally.ended;
            for (failure, count) in tally.failed {
                *sum.failed.entry(failure).or_default() += count;
            }
        }
        sum
    }
}

impl Tally {
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }
}
