//! What the screen shows: the last samples, the view, the selection, and what a key changes. Draws nothing.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::actions::{Action, Effect};
use super::event_table::event_table;
use super::pool_table::pool_table;
use super::rates::Rates;
use super::sample::Sample;
use super::shared_table::shared_table;
use super::table::{SortOrder, Table};
use super::worker_table::{self, worker_table};
use tokio_prefork::WorkerId;
use tokio_prefork::control::Event;

/// How many log events are kept: as many as the primary keeps.
const MAX_KEPT_EVENTS: usize = 1000;

/// The intervals between samples that `+` and `-` choose from, in milliseconds.
const INTERVALS_MS: [u64; 9] = [100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000];

/// What the table lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    Workers,
    Pools,
    Events,
    Shared,
}

/// What covers the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overlay {
    Help,
    Worker(WorkerId),
    /// The row of another view with this key.
    Row(u64),
}

/// Whether the primary answers.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Connection {
    Live,
    Lost { reason: String, since: Instant },
}

/// The selected row of a view.
#[derive(Debug, Clone, Copy, Default)]
struct Selection {
    key: Option<u64>,
    /// Where it was, for when the row is gone.
    index: usize,
}

/// The state of the screen.
#[derive(Debug)]
pub(super) struct Model {
    view: View,
    orders: [SortOrder; View::ALL.len()],
    selections: [Selection; View::ALL.len()],
    filter: String,
    edited_filter: Option<String>,
    overlay: Option<Overlay>,
    /// First line of the overlay, and first row of the table.
    pub(super) overlay_scroll: usize,
    pub(super) first_row: usize,
    /// How many rows were drawn last: how far a page is.
    pub(super) page_rows: usize,
    is_paused: bool,
    interval: Duration,
    sample: Sample,
    rates: Rates,
    events: VecDeque<Event>,
    connection: Connection,
}

impl View {
    pub(super) const ALL: [View; 4] = [View::Workers, View::Pools, View::Events, View::Shared];

    /// Returns the name on the tab and of `--view`.
    pub(super) fn name(self) -> &'static str {
        match self {
            View::Workers => "workers",
            View::Pools => "pools",
            View::Events => "events",
            View::Shared => "shared",
        }
    }

    /// Returns whether the rows have an order of their own and cannot be sorted.
    fn is_in_time_order(self) -> bool {
        self == View::Events
    }
}

impl Model {
    /// Returns the state at the start.
    pub(super) fn new(mut sample: Sample, view: View, interval: Duration) -> Model {
        let slot = worker_table::SLOT.sort_order();
        let by_name = |column| SortOrder { column, is_descending: false };
        let events = std::mem::take(&mut sample.events).into();
        Model {
            view,
            // An empty title keeps the order of the declarations or of time.
            orders: [slot, by_name("POOL"), by_name(""), by_name("NAME")],
            selections: [Selection::default(); View::ALL.len()],
            filter: String::new(),
            edited_filter: None,
            overlay: None,
            overlay_scroll: 0,
            first_row: 0,
            page_rows: 1,
            is_paused: false,
            interval,
            sample,
            rates: Rates::default(),
            events,
            connection: Connection::Live,
        }
    }

    pub(super) fn view(&self) -> View {
        self.view
    }

    pub(super) fn overlay(&self) -> Option<Overlay> {
        self.overlay
    }

    pub(super) fn sample(&self) -> &Sample {
        &self.sample
    }

    pub(super) fn rates(&self) -> &Rates {
        &self.rates
    }

    pub(super) fn events(&self) -> impl DoubleEndedIterator<Item = &Event> {
        self.events.iter()
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(super) fn is_paused(&self) -> bool {
        self.is_paused
    }

    pub(super) fn interval(&self) -> Duration {
        self.interval
    }

    /// Returns the filter that applies, also while it is being typed.
    pub(super) fn filter(&self) -> &str {
        self.edited_filter.as_deref().unwrap_or(&self.filter)
    }

    pub(super) fn set_filter(&mut self, filter: String) {
        self.filter = filter;
    }

    /// Returns whether keys are text for the filter.
    pub(super) fn is_editing(&self) -> bool {
        self.edited_filter.is_some()
    }

    /// Returns what the table is sorted by; `None` for a view with an order of its own.
    pub(super) fn sort_order(&self) -> Option<SortOrder> {
        (!self.view.is_in_time_order()).then_some(self.orders[self.view as usize])
    }

    /// Sorts the table of the view by the column of this title, in whatever case. Returns whether there is such a column.
    pub(super) fn sort_by(&mut self, title: &str) -> bool {
        let columns = self.unsorted_table().columns;
        let found = columns.iter().find(|column| column.title.eq_ignore_ascii_case(title));
        let Some(column) = found.filter(|_| !self.view.is_in_time_order()) else { return false };
        self.orders[self.view as usize] = column.sort_order();
        true
    }

    /// Takes in what the sampling thread received.
    pub(super) fn apply(&mut self, received: Result<Sample, String>, now: Instant) {
        let mut sample = match received {
            Ok(sample) => sample,
            Err(reason) => {
                let since = match self.connection {
                    Connection::Lost { since, .. } => since,
                    Connection::Live => now,
                };
                self.connection = Connection::Lost { reason, since };
                self.rates = Rates::default();
                return;
            }
        };
        self.connection = Connection::Live;
        if sample.is_other_cluster {
            self.rates = Rates::default();
            self.events.clear();
        } else {
            self.rates = Rates::between(&self.sample, &sample);
        }
        self.events.extend(std::mem::take(&mut sample.events));
        let surplus = self.events.len().saturating_sub(MAX_KEPT_EVENTS);
        self.events.drain(..surplus);
        self.sample = sample;
    }

    /// Returns the table of the view, sorted and filtered.
    pub(super) fn table(&self) -> Table {
        let mut table = self.unsorted_table();
        if let Some(order) = self.sort_order() {
            table.sort(order);
        }
        table.filter(self.filter());
        table
    }

    fn unsorted_table(&self) -> Table {
        match self.view {
            View::Workers => worker_table(&self.sample, &self.rates),
            View::Pools => pool_table(&self.sample, &self.rates),
            View::Events => event_table(self.events.iter()),
            View::Shared => shared_table(&self.sample, &self.rates),
        }
    }

    /// Returns the index of the selected row. If that row is gone, the selection moves to the one in its place. Without a
    /// selection, the first row is selected; among events the last one, so that new ones scroll in.
    pub(super) fn selected_index(&mut self, table: &Table) -> Option<usize> {
        let last = table.rows.len().checked_sub(1)?;
        let is_events = self.view == View::Events;
        let selection = &mut self.selections[self.view as usize];
        let index = match selection.key {
            None if is_events => last,
            None => 0,
            Some(key) => match table.rows.iter().position(|row| row.key == key) {
                Some(index) => index,
                None => {
                    let index = selection.index.min(last);
                    selection.key = Some(table.rows[index].key);
                    index
                }
            },
        };
        selection.index = index;
        Some(index)
    }

    /// Applies an action, and returns what remains to be done outside of the model.
    pub(super) fn handle(&mut self, action: Action) -> Effect {
        match action {
            Action::Quit => return Effect::Quit,
            Action::Suspend => return Effect::Suspend,
            Action::Redraw => return Effect::Redraw,
            Action::Refresh => return Effect::Sample,
            Action::Back if !self.go_back() => return Effect::Quit,
            Action::Back => {}
            Action::Type(c) => self.edit_filter(|text| text.push(c)),
            Action::Erase => self.edit_filter(|text| _ = text.pop()),
            Action::Clear => self.edit_filter(String::clear),
            Action::Accept => self.accept(),
            Action::Help if self.overlay == Some(Overlay::Help) => self.show_overlay(None),
            Action::Help => self.show_overlay(Some(Overlay::Help)),
            Action::StartFilter => {
                // The rows are seen while the filter is typed.
                self.show_overlay(None);
                self.edited_filter = Some(self.filter.clone());
            }
            Action::NextView(step) => {
                let index = (self.view as usize).saturating_add_signed(step + 4) % View::ALL.len();
                self.show_view(View::ALL[index]);
            }
            Action::ShowView(view) => self.show_view(view),
            Action::Move(step) => self.move_by(step),
            Action::MovePages(pages) => self.move_by(pages * self.page_rows.max(1) as isize),
            Action::MoveToStart => self.move_by(isize::MIN / 2),
            Action::MoveToEnd => self.move_to_end(),
            Action::NextSortColumn(step) => self.sort_by_neighbour(step),
            Action::ReverseSort => {
                let order = &mut self.orders[self.view as usize];
                order.is_descending = !order.is_descending;
            }
            Action::SortBy(title) => {
                self.show_view(View::Workers);
                self.sort_by(title);
            }
            Action::Pause => {
                self.is_paused = !self.is_paused;
                return Effect::Configure;
            }
            Action::ChangeInterval(step) => {
                self.change_interval(step);
                return Effect::Configure;
            }
        }
        Effect::None
    }

    /// Closes what is on top: the filter that is typed, an overlay, the filter. Returns whether there was anything.
    fn go_back(&mut self) -> bool {
        if self.edited_filter.take().is_some() {
            return true;
        }
        if self.overlay.is_some() {
            self.show_overlay(None);
            return true;
        }
        let had_filter = !self.filter.is_empty();
        self.filter.clear();
        had_filter
    }

    fn edit_filter(&mut self, edit: impl FnOnce(&mut String)) {
        if let Some(text) = &mut self.edited_filter {
            edit(text);
        }
    }

    /// Accepts the typed filter, closes an overlay or opens the details of the selected row.
    fn accept(&mut self) {
        if let Some(text) = self.edited_filter.take() {
            self.filter = text;
            return;
        }
        if self.overlay.is_some() {
            return self.show_overlay(None);
        }
        let table = self.table();
        let Some(index) = self.selected_index(&table) else { return };
        let key = table.rows[index].key;
        // Keeps the row, so that it is still selected when the details are closed.
        self.selections[self.view as usize].key = Some(key);
        self.show_overlay(Some(match self.view {
            View::Workers => Overlay::Worker(WorkerId(key)),
            _ => Overlay::Row(key),
        }));
    }

    fn show_overlay(&mut self, overlay: Option<Overlay>) {
        self.overlay = overlay;
        self.overlay_scroll = 0;
    }

    fn show_view(&mut self, view: View) {
        self.view = view;
        self.first_row = 0;
        self.show_overlay(None);
    }

    fn move_by(&mut self, step: isize) {
        if self.overlay.is_some() {
            // Drawing limits it to the last page.
            self.overlay_scroll = self.overlay_scroll.saturating_add_signed(step);
            return;
        }
        let table = self.table();
        let Some(index) = self.selected_index(&table) else { return };
        let index = index.saturating_add_signed(step).min(table.rows.len() - 1);
        let key = Some(table.rows[index].key);
        self.selections[self.view as usize] = Selection { key, index };
    }

    fn move_to_end(&mut self) {
        self.move_by(isize::MAX / 2);
        if self.view == View::Events && self.overlay.is_none() {
            // New events scroll in again.
            self.selections[self.view as usize] = Selection::default();
        }
    }

    fn sort_by_neighbour(&mut self, step: isize) {
        let Some(order) = self.sort_order() else { return };
        let columns = self.unsorted_table().columns;
        let index = columns.iter().position(|column| column.title == order.column);
        let index = index.map_or(0, |index| index.saturating_add_signed(step));
        let column = columns[index.min(columns.len() - 1)];
        if column.title != order.column {
            self.orders[self.view as usize] = column.sort_order();
        }
    }

    fn change_interval(&mut self, step: isize) {
        let mut intervals = INTERVALS_MS.map(Duration::from_millis).into_iter();
        let next = match step > 0 {
            true => intervals.find(|interval| *interval > self.interval),
            false => intervals.rfind(|interval| *interval < self.interval),
        };
        self.interval = next.unwrap_or(self.interval);
    }
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
