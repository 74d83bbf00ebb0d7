//! The keys, and what each of them does.

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::model::View;
use super::worker_table;

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Quit,
    /// Closes what is on top, or quits.
    Back,
    /// Opens the details, or accepts the filter.
    Accept,
    Help,
    StartFilter,
    Type(char),
    Erase,
    Clear,
    /// Shows the next (1) or previous (-1) view.
    NextView(isize),
    ShowView(View),
    Move(isize),
    MovePages(isize),
    MoveToStart,
    MoveToEnd,
    NextSortColumn(isize),
    ReverseSort,
    /// Sorts the workers by the column of this title.
    SortBy(&'static str),
    Pause,
    /// Chooses the next longer (1) or shorter (-1) interval.
    ChangeInterval(isize),
    /// Takes a sample now.
    Refresh,
    /// Draws the whole screen again.
    Redraw,
    Suspend,
}

/// What remains to be done after an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    Quit,
    /// A sample is wanted at once.
    Sample,
    /// The interval or the pause has changed.
    Configure,
    Redraw,
    Suspend,
}

/// The keys and what they do, for the help and the documentation.
pub(super) const KEYS: [(&str, &str); 17] = [
    ("Up Down j k", "select a row, or scroll"),
    ("PgUp PgDn Home End", "select a row a page away, the first or the last one"),
    ("Enter", "details of the selected row; again: back"),
    ("Tab Shift-Tab 1 2 3 4", "next and previous view; workers, pools, events, shared"),
    ("< >", "sort by the previous or the next column"),
    ("P M T N", "sort the workers by CPU, memory, uptime or pid, as top does"),
    ("S", "sort the workers by slot"),
    ("R", "reverse the order"),
    ("/", "filter the rows: type a text, Enter accepts, Esc cancels"),
    ("p", "pause and continue"),
    ("+ -", "longer and shorter interval"),
    ("Space", "take a sample now"),
    ("? h F1", "this help; again: back"),
    ("Ctrl-L", "draw the screen again"),
    ("Ctrl-Z", "suspend; fg continues"),
    ("Esc", "close details, help or filter; else quit"),
    ("q Ctrl-C F10", "quit"),
];

/// Returns what a key asks for; `None` for keys without a meaning.
pub(super) fn action_of(key: KeyEvent, is_editing: bool) -> Option<Action> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return match key.code {
            KeyCode::Char('c') => Some(Action::Quit),
            KeyCode::Char('l') => Some(Action::Redraw),
            KeyCode::Char('z') => Some(Action::Suspend),
            KeyCode::Char('u') if is_editing => Some(Action::Clear),
            KeyCode::Char('h') if is_editing => Some(Action::Erase),
            _ => None,
        };
    }
    let action = match key.code {
        KeyCode::Esc => Action::Back,
        KeyCode::Enter => Action::Accept,
        KeyCode::Up => Action::Move(-1),
        KeyCode::Down => Action::Move(1),
        KeyCode::PageUp => Action::MovePages(-1),
        KeyCode::PageDown => Action::MovePages(1),
        KeyCode::Home => Action::MoveToStart,
        KeyCode::End => Action::MoveToEnd,
        KeyCode::Tab => Action::NextView(1),
        KeyCode::BackTab => Action::NextView(-1),
        KeyCode::F(1) => Action::Help,
        KeyCode::F(10) => Action::Quit,
        KeyCode::Backspace if is_editing => Action::Erase,
        KeyCode::Char(c) if is_editing => Action::Type(c),
        KeyCode::Char(c) => return action_of_character(c),
        _ => return None,
    };
    Some(action)
}

fn action_of_character(c: char) -> Option<Action> {
    let action = match c {
        'q' => Action::Quit,
        '?' | 'h' => Action::Help,
        '/' => Action::StartFilter,
        'j' => Action::Move(1),
        'k' => Action::Move(-1),
        'g' => Action::MoveToStart,
        'G' => Action::MoveToEnd,
        '1'..='4' => Action::ShowView(View::ALL[c as usize - '1' as usize]),
        '<' => Action::NextSortColumn(-1),
        '>' => Action::NextSortColumn(1),
        'R' => Action::ReverseSort,
        'P' => Action::SortBy(worker_table::CPU.title),
        'M' => Action::SortBy(worker_table::MEMORY.title),
        'T' => Action::SortBy(worker_table::UPTIME.title),
        'N' => Action::SortBy(worker_table::PID.title),
        'S' => Action::SortBy(worker_table::SLOT.title),
        'p' => Action::Pause,
        '+' | '=' => Action::ChangeInterval(1),
        '-' => Action::ChangeInterval(-1),
        ' ' => Action::Refresh,
        _ => return None,
    };
    Some(action)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(code: KeyCode, modifiers: KeyModifiers, is_editing: bool) -> Option<Action> {
        action_of(KeyEvent::new(code, modifiers), is_editing)
    }

    #[test]
    fn letters_are_text_while_the_filter_is_typed() {
        let none = KeyModifiers::NONE;
        assert_eq!(action(KeyCode::Char('q'), none, false), Some(Action::Quit));
        assert_eq!(action(KeyCode::Char('q'), none, true), Some(Action::Type('q')));
        assert_eq!(action(KeyCode::Char('é'), KeyModifiers::SHIFT, true), Some(Action::Type('é')));
        assert_eq!(action(KeyCode::Char('é'), none, false), None);
        assert_eq!(action(KeyCode::Backspace, none, false), None);
    }

    #[test]
    fn control_c_quits_always_and_unknown_combinations_do_nothing() {
        for is_editing in [false, true] {
            let control = |c| action(KeyCode::Char(c), KeyModifiers::CONTROL, is_editing);
            assert_eq!(control('c'), Some(Action::Quit));
            assert_eq!(control('z'), Some(Action::Suspend));
            assert_eq!(control('q'), None);
        }
    }

    #[test]
    fn every_documented_character_has_an_action() {
        let words = KEYS.iter().flat_map(|(keys, _)| keys.split(' '));
        for word in words.filter(|word| word.chars().count() == 1) {
            let key = word.chars().next().expect("character");
            assert!(action_of_character(key).is_some(), "{key}");
        }
    }
}
