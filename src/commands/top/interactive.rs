//! The view in a terminal: one loop that takes samples, keys and signals, and draws.

use std::io;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crossterm::event::Event;

use super::actions::{Effect, action_of};
use super::draw::{Canvas, draw_screen};
use super::model::Model;
use super::sample::{Sample, SampleSource};
use super::sampler::Sampler;
use super::terminal::{self, Screen, Signals};
use super::theme::Theme;
use tokio_prefork::{Error, Result, exit};

/// How long to wait for a message before looking for signals: 100 ms.
const SIGNAL_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// How often to draw without a change, for ages that grow while the primary does not answer.
const REDRAW_INTERVAL: Duration = Duration::from_secs(1);

/// Messages that may wait for the loop. Their senders wait for room.
const MAX_WAITING_MESSAGES: usize = 64;

/// What the threads beside the loop send to it.
pub(super) enum Message {
    /// A sample, or why there is none.
    Sample(Result<Box<Sample>, String>),
    /// A key or a new size of the terminal.
    Input(io::Result<Event>),
}

/// How the loop goes on.
#[derive(Debug, PartialEq, Eq)]
enum Flow {
    Continue,
    Quit,
}

/// The loop and what it works with.
struct LiveView {
    model: Model,
    screen: Screen,
    sampler: Sampler,
    /// How many samples to show before the end.
    left: Option<u64>,
    /// When the screen was drawn; `None` if something has changed since.
    drawn_at: Option<Instant>,
}

/// Shows the model until a key or a signal ends it, or until this number of samples was shown.
///
/// # Errors
///
/// The terminal cannot be used.
pub(super) fn run_interactive(
    model: Model,
    source: SampleSource,
    iterations: Option<u64>,
) -> Result<ExitCode> {
    let signals = Signals::register()?;
    let (sender, messages) = sync_channel(MAX_WAITING_MESSAGES);
    let sampler = Sampler::start(source, model.interval(), sender.clone())?;
    let screen = Screen::enter()?;
    let mut view = LiveView { model, screen, sampler, left: iterations, drawn_at: None };
    let result = read_input(sender).and_then(|()| view.run(&messages, &signals));
    // Gives the terminal back.
    drop(view);
    if let Some(signal) = signals.ending_signal() {
        terminal::end_by_signal(signal);
    }
    // The terminal may have been closed, which is the user's way to quit.
    match result {
        Err(error) if terminal::has_terminal() => Err(error),
        _ => Ok(ExitCode::from(exit::OK)),
    }
}

/// Starts the thread that reads keys. It has its own thread because crossterm reads a terminal that is gone in an endless loop:
/// that must not keep the process from ending.
fn read_input(sender: SyncSender<Message>) -> Result<()> {
    let run = move || {
        loop {
            let event = crossterm::event::read();
            let has_failed = event.is_err();
            if sender.send(Message::Input(event)).is_err() || has_failed {
                return;
            }
        }
    };
    let thread = thread::Builder::new().name("input".to_string()).spawn(run);
    thread.map(drop).map_err(|e| Error::system("start a thread", e))
}

impl LiveView {
    fn run(&mut self, messages: &Receiver<Message>, signals: &Signals) -> Result<()> {
        let theme = Theme::from_environment();
        while signals.ending_signal().is_none() && terminal::has_terminal() {
            if signals.take_continued() {
                self.screen.enter_again()?;
                self.drawn_at = None;
            }
            if self.drawn_at.is_none_or(|at| at.elapsed() >= REDRAW_INTERVAL) {
                self.draw(theme)?;
            }
            if self.left == Some(0) || self.receive(messages)? == Flow::Quit {
                return Ok(());
            }
        }
        Ok(())
    }

    fn draw(&mut self, theme: Theme) -> Result<()> {
        let model = &mut self.model;
        self.screen.draw(|frame| {
            let area = frame.area();
            let mut canvas = Canvas { buffer: frame.buffer_mut(), theme };
            draw_screen(model, &mut canvas, area, Instant::now());
        })?;
        self.drawn_at = Some(Instant::now());
        Ok(())
    }

    /// Takes in all messages that are there; waits for the first one. A held key must not queue up drawings.
    fn receive(&mut self, messages: &Receiver<Message>) -> Result<Flow> {
        if self.sampler.has_ended() {
            // The message of its panic is on standard error.
            return Err(Error::refused("the thread that asks the primary has ended unexpectedly"));
        }
        let mut timeout = SIGNAL_CHECK_INTERVAL;
        loop {
            let message = match messages.recv_timeout(timeout) {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    return Ok(Flow::Continue);
                }
            };
            timeout = Duration::ZERO;
            self.drawn_at = None;
            match message {
                Message::Sample(sample) => {
                    let shown = u64::from(sample.is_ok());
                    self.left = self.left.map(|left| left.saturating_sub(shown));
                    self.model.apply(sample.map(|sample| *sample), Instant::now());
                }
                Message::Input(event) => {
                    let event = event.map_err(|e| Error::system("read a key", e))?;
                    if self.handle_event(&event)? == Flow::Quit {
                        return Ok(Flow::Quit);
                    }
                }
            }
        }
    }

    fn handle_event(&mut self, event: &Event) -> Result<Flow> {
        let Event::Key(key) = event else { return Ok(Flow::Continue) };
        let model = &mut self.model;
        let Some(action) = action_of(*key, model.is_editing()) else { return Ok(Flow::Continue) };
        match model.handle(action) {
            Effect::None => {}
            Effect::Quit => return Ok(Flow::Quit),
            Effect::Redraw => self.screen.redraw()?,
            Effect::Suspend => self.screen.suspend()?,
            Effect::Sample => self.sampler.configure(model.interval(), model.is_paused(), true),
            Effect::Configure => self.sampler.configure(model.interval(), model.is_paused(), false),
        }
        Ok(Flow::Continue)
    }
}
