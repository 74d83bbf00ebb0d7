//! Load from many clients, which count the outcome of each request and never retry one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::http::{Address, Client, Failure, Response};
use super::wait::{self, DEADLINE};

/// Configures what each client does.
#[derive(Debug, Clone)]
pub struct Load {
    to: Address,
    clients: usize,
    post: bool,
    keep_alive: bool,
    think: bool,
    /// Whether a refused connection ends the client without counting as a failure.
    until_refused: bool,
}

/// Clients that are running.
pub struct RunningLoad {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    threads: Vec<JoinHandle<LoadResult>>,
}

/// Outcomes of all requests of a load.
#[derive(Debug, Default)]
pub struct LoadResult {
    pub ok: u64,
    pub refused: u64,
    /// Connections that the server closed between two requests, or announced to close.
    pub ended: u64,
    /// Requests without a correct response, by failure.
    pub failed: BTreeMap<Failure, u64>,
}

impl Load {
    /// Creates clients that GET `/` on kept connections.
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

    /// Creates clients that open a connection for each request.
    pub fn new_connections(to: &Address, clients: usize) -> Load {
        Load { keep_alive: false, ..Load::keep_alive(to, clients) }
    }

    /// Sends POST requests to `/echo`, and checks the echoed bodies.
    pub fn with_posts(self) -> Load {
        Load { post: true, ..self }
    }

    /// Waits for up to 10 ms between requests.
    pub fn with_think_time(self) -> Load {
        Load { think: true, ..self }
    }

    /// Ends a client at the first refused connection, as the end of the server.
    pub fn until_refused(self) -> Load {
        Load { until_refused: true, ..self }
    }

    pub fn start(&self) -> RunningLoad {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let threads = (0..self.clients)
            .map(|number| {
                let (load, stop, answered) = (self.clone(), stop.clone(), answered.clone());
                std::thread::spawn(move || load.one_client(number, &stop, &answered))
            })
            .collect();
        RunningLoad { stop, answered, threads }
    }

    fn one_client(&self, number: usize, stop: &AtomicBool, answered: &AtomicU64) -> LoadResult {
        let give_up = Instant::now() + 4 * DEADLINE;
        let mut tally = LoadResult::default();
        let mut kept: Option<Client> = None;
        let mut turn = number;
        while !stop.load(Relaxed) && Instant::now() < give_up {
            // A connection that was closed between two requests is no failure if that is noticed before sending.
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

impl RunningLoad {
    /// Waits until `more` further requests have been answered, so that the load is running.
    #[track_caller]
    pub fn wait_answered(&self, more: u64) {
        let goal = self.answered.load(Relaxed) + more;
        wait::wait_until(&format!("{more} more answers"), || self.answered.load(Relaxed) >= goal);
    }

    /// Lets every client finish its request, and returns the sums.
    pub fn stop(self) -> LoadResult {
        self.stop.store(true, Relaxed);
        self.join()
    }

    /// Waits for clients that end by themselves, and returns the sums.
    pub fn join(self) -> LoadResult {
        let mut sum = LoadResult::default();
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

impl LoadResult {
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }
}
