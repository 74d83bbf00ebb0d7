//! Tests of the model: keys and samples.

use super::super::actions::{Action, Effect};
use super::super::test_support::{event, sample};
use super::*;

fn model() -> Model {
    Model::new(sample(|_| {}), View::Workers, Duration::from_secs(1))
}

fn keys(model: &Model) -> Vec<u64> {
    model.table().rows.iter().map(|row| row.key).collect()
}

fn selected(model: &mut Model) -> Option<u64> {
    let table = model.table();
    model.selected_index(&table).map(|index| table.rows[index].key)
}

fn press(model: &mut Model, actions: &[Action]) {
    for action in actions {
        assert_eq!(model.handle(*action), Effect::None, "{action:?}");
    }
}

#[test]
fn the_selection_follows_its_worker_when_the_order_changes() {
    let mut model = model();
    assert_eq!((keys(&model), selected(&mut model)), (vec![3, 4], Some(3)));
    press(&mut model, &[Action::Move(1)]);
    assert_eq!(selected(&mut model), Some(4));
    press(&mut model, &[Action::ReverseSort]);
    assert_eq!((keys(&model), selected(&mut model)), (vec![4, 3], Some(4)));
}

#[test]
fn when_the_selected_worker_ends_the_one_in_its_place_is_selected() {
    let mut model = model();
    press(&mut model, &[Action::Move(1)]);
    assert_eq!(selected(&mut model), Some(4));
    let shrunk = sample(|status| status.workers.truncate(1));
    model.apply(Ok(shrunk), Instant::now());
    assert_eq!(selected(&mut model), Some(3));
    let empty = sample(|status| status.workers.clear());
    model.apply(Ok(empty), Instant::now());
    assert_eq!(selected(&mut model), None);
    press(&mut model, &[Action::Move(1), Action::MovePages(-1), Action::MoveToEnd, Action::Accept]);
    assert_eq!(model.overlay(), None);
}

#[test]
fn the_sort_column_moves_within_the_columns() {
    let mut model = model();
    let column = |model: &Model| model.sort_order().expect("order").column;
    press(&mut model, &[Action::NextSortColumn(-1)]);
    assert_eq!(column(&model), "SLOT");
    press(&mut model, &[Action::NextSortColumn(1)]);
    assert_eq!(column(&model), "WORKER");
    for _ in 0..40 {
        press(&mut model, &[Action::NextSortColumn(1)]);
    }
    assert_eq!(column(&model), "REQUEST");
    assert!(model.sort_by("req/s") && column(&model) == "REQ/S");
    assert!(!model.sort_by("color"));
    press(
        &mut model,
        &[Action::ShowView(View::Events), Action::ReverseSort, Action::NextSortColumn(1)],
    );
    assert!(model.sort_order().is_none() && !model.sort_by("event"));
}

#[test]
fn a_typed_filter_applies_at_once_and_escape_cancels_it() {
    let mut model = model();
    press(
        &mut model,
        &[Action::StartFilter, Action::Type('s'), Action::Type('P'), Action::Type('i')],
    );
    assert!(model.is_editing());
    assert_eq!(keys(&model), [3], "GET /spin");
    press(&mut model, &[Action::Accept]);
    assert_eq!((model.is_editing(), model.filter()), (false, "sPi"));
    press(&mut model, &[Action::StartFilter, Action::Erase, Action::Type('x'), Action::Back]);
    assert_eq!(model.filter(), "sPi");
    press(&mut model, &[Action::Back]);
    assert_eq!(keys(&model), [3, 4]);
    assert_eq!(model.handle(Action::Back), Effect::Quit);
}

#[test]
fn details_follow_the_worker_and_are_closed_before_the_view() {
    let mut model = model();
    press(&mut model, &[Action::Move(1), Action::Accept]);
    assert_eq!(model.overlay(), Some(Overlay::Worker(WorkerId(4))));
    let shrunk = sample(|status| status.workers.truncate(1));
    model.apply(Ok(shrunk), Instant::now());
    assert_eq!(model.overlay(), Some(Overlay::Worker(WorkerId(4))));
    press(&mut model, &[Action::Back]);
    assert_eq!(model.overlay(), None);
    press(&mut model, &[Action::Help, Action::NextView(1)]);
    assert_eq!((model.overlay(), model.view()), (None, View::Pools));
    press(&mut model, &[Action::Help, Action::Help]);
    assert_eq!(model.overlay(), None);
    press(&mut model, &[Action::Help, Action::StartFilter]);
    assert_eq!((model.overlay(), model.is_editing()), (None, true));
    press(&mut model, &[Action::Back]);
    press(&mut model, &[Action::NextView(-1), Action::NextView(-1)]);
    assert_eq!(model.view(), View::Shared);
}

#[test]
fn new_events_scroll_in_until_an_older_one_is_selected() {
    let mut first = sample(|_| {});
    first.events = (1..=900).map(|n| event(n, "info", "started")).collect();
    let mut model = Model::new(first, View::Events, Duration::from_secs(1));
    assert_eq!(selected(&mut model), Some(900));
    let mut next = sample(|_| {});
    next.events = (901..=1100).map(|n| event(n, "info", "ready")).collect();
    model.apply(Ok(next), Instant::now());
    assert_eq!((selected(&mut model), keys(&model).len()), (Some(1100), MAX_KEPT_EVENTS));
    press(&mut model, &[Action::Move(-1)]);
    let mut next = sample(|_| {});
    next.events = vec![event(1101, "info", "ready")];
    model.apply(Ok(next), Instant::now());
    assert_eq!(selected(&mut model), Some(1099));
    press(&mut model, &[Action::MoveToEnd]);
    let mut next = sample(|_| {});
    next.events = vec![event(1102, "info", "ready")];
    model.apply(Ok(next), Instant::now());
    assert_eq!(selected(&mut model), Some(1102));
}

#[test]
fn a_lost_connection_keeps_the_figures_without_rates_and_a_reply_ends_it() {
    let mut model = model();
    let later = sample(|status| {
        status.primary.uptime_ms += 1000;
        status.totals.requests += 10;
    });
    let lost_at = Instant::now();
    model.apply(Ok(later), lost_at);
    assert!(model.rates().totals.requests.is_some());
    model.apply(Err("gone".to_string()), lost_at);
    model.apply(Err("refused".to_string()), lost_at + Duration::from_secs(9));
    let expected = Connection::Lost { reason: "refused".to_string(), since: lost_at };
    assert_eq!(model.connection(), &expected);
    assert!(model.rates().totals.requests.is_none() && keys(&model).len() == 2);
    model.apply(Ok(sample(|_| {})), Instant::now());
    assert_eq!(model.connection(), &Connection::Live);
}

#[test]
fn another_cluster_has_no_rates_and_events_of_its_own() {
    let mut first = sample(|_| {});
    first.events = vec![event(7, "info", "old")];
    let mut model = Model::new(first, View::Events, Duration::from_secs(1));
    let mut other = sample(|status| status.totals.requests += 10);
    (other.is_other_cluster, other.events) = (true, vec![event(1, "info", "new")]);
    model.apply(Ok(other), Instant::now());
    assert_eq!(keys(&model), [1]);
    assert_eq!(model.rates().totals.requests, None);
}

#[test]
fn the_interval_changes_in_steps_and_stays_within_its_bounds() {
    let mut model = model();
    assert_eq!(model.handle(Action::ChangeInterval(1)), Effect::Configure);
    assert_eq!(model.interval(), Duration::from_secs(2));
    for _ in 0..20 {
        model.handle(Action::ChangeInterval(1));
    }
    assert_eq!(model.interval(), Duration::from_secs(60));
    for _ in 0..20 {
        model.handle(Action::ChangeInterval(-1));
    }
    assert_eq!(model.interval(), Duration::from_millis(100));
    assert_eq!(model.handle(Action::Pause), Effect::Configure);
    assert!(model.is_paused());
}
