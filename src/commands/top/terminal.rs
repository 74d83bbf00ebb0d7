//! The terminal: raw mode and the alternate screen, given back whatever happens.

use std::io::{self, IsTerminal, Stdout, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Once};

use crossterm::cursor::Show;
use crossterm::terminal::{
    Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use nix::sys::signal::{Signal, raise};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use tokio_prefork::{Error, Result};

/// Whether the terminal is in raw mode and shows the alternate screen.
static IS_ENTERED: AtomicBool = AtomicBool::new(false);

/// The screen. Dropping it gives the terminal back.
pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl Screen {
    /// Enters raw mode and the alternate screen.
    ///
    /// # Errors
    ///
    /// The terminal cannot be set up.
    pub(super) fn enter() -> Result<Screen> {
        restore_on_panic();
        enter_screen().map_err(terminal_error)?;
        let terminal = Terminal::new(CrosstermBackend::new(io::stdout())).map_err(|e| {
            restore_terminal();
            terminal_error(e)
        })?;
        Ok(Screen { terminal })
    }

    /// Draws with this function.
    ///
    /// # Errors
    ///
    /// The terminal cannot be written.
    pub(super) fn draw(&mut self, draw: impl FnOnce(&mut ratatui::Frame)) -> Result<()> {
        self.terminal.draw(draw).map(drop).map_err(terminal_error)
    }

    /// Forgets what the terminal shows, so that the next drawing writes all of it.
    ///
    /// # Errors
    ///
    /// The terminal cannot be written.
    pub(super) fn redraw(&mut self) -> Result<()> {
        // `Terminal::clear` would ask for the position of the cursor, whose answer the thread that reads keys would take.
        let cleared = crossterm::execute!(io::stdout(), Clear(ClearType::All));
        let new = cleared.and_then(|()| Terminal::new(CrosstermBackend::new(io::stdout())));
        self.terminal = new.map_err(terminal_error)?;
        Ok(())
    }

    /// Enters raw mode and the alternate screen again, after the shell or another program had the terminal.
    ///
    /// # Errors
    ///
    /// The terminal cannot be set up.
    pub(super) fn enter_again(&mut self) -> Result<()> {
        // Raw mode that is thought to be set would not be set again.
        restore_terminal();
        enter_screen().map_err(terminal_error)?;
        self.redraw()
    }

    /// Gives the terminal back and stops this process, as Ctrl-Z does; returns when it is continued. Without a shell with job
    /// control, the kernel ignores the signal.
    ///
    /// # Errors
    ///
    /// The terminal cannot be set up again.
    pub(super) fn suspend(&mut self) -> Result<()> {
        restore_terminal();
        raise(Signal::SIGTSTP).map_err(|e| Error::system("suspend this process", e))?;
        self.enter_again()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore_terminal();
    }
}

/// Returns whether there is still a terminal; a hung-up one is none.
pub(super) fn has_terminal() -> bool {
    io::stdout().is_terminal()
}

fn terminal_error(error: io::Error) -> Error {
    Error::system("use the terminal", error)
}

fn enter_screen() -> io::Result<()> {
    IS_ENTERED.store(true, Ordering::SeqCst);
    let entered =
        enable_raw_mode().and_then(|()| crossterm::execute!(io::stdout(), EnterAlternateScreen));
    entered.inspect_err(|_| restore_terminal())
}

/// Leaves raw mode and the alternate screen, if they are entered. A terminal that is gone needs nothing.
fn restore_terminal() {
    if !IS_ENTERED.swap(false, Ordering::SeqCst) {
        return;
    }
    let _ = crossterm::execute!(io::stdout(), LeaveAlternateScreen, Show);
    let _ = disable_raw_mode();
    let _ = io::stdout().flush();
}

/// Gives the terminal back before a panic is printed, so that its message is visible.
fn restore_on_panic() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let print_panic = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore_terminal();
            print_panic(panic);
        }));
    });
}

/// The signals that end the view, and the one that continues it after a stop.
pub(super) struct Signals {
    /// The number of the last signal that ends it; 0 if there was none.
    ending: Arc<AtomicUsize>,
    has_continued: Arc<AtomicBool>,
}

impl Signals {
    /// Registers for the signals.
    ///
    /// # Errors
    ///
    /// The kernel refuses a handler.
    pub(super) fn register() -> Result<Signals> {
        let signals = Signals { ending: Arc::default(), has_continued: Arc::default() };
        let register_all = || -> io::Result<()> {
            for signal in [SIGTERM, SIGHUP, SIGINT, SIGQUIT] {
                let ending = Arc::clone(&signals.ending);
                signal_hook::flag::register_usize(signal, ending, signal as usize)?;
            }
            signal_hook::flag::register(SIGCONT, Arc::clone(&signals.has_continued)).map(drop)
        };
        register_all().map_err(|e| Error::system("register for signals", e))?;
        Ok(signals)
    }

    /// Returns the signal that has asked to end, if any.
    pub(super) fn ending_signal(&self) -> Option<i32> {
        let signal = self.ending.load(Ordering::SeqCst);
        i32::try_from(signal).ok().filter(|signal| *signal != 0)
    }

    /// Returns whether the process was stopped and continued since the last call.
    pub(super) fn take_continued(&self) -> bool {
        self.has_continued.swap(false, Ordering::SeqCst)
    }
}

/// Ends this process by a signal, so that its parent sees why. The terminal must have been given back.
pub(super) fn end_by_signal(signal: i32) {
    // If it fails, the caller ends normally.
    let _ = signal_hook::low_level::emulate_default_handler(signal);
}
