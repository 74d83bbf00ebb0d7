//! Tests of the drawing, with ratatui's test backend.

use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::Color;

use super::super::actions::Action;
use super::super::batch::buffer_text;
use super::super::sample::Sample;
use super::super::test_support::{event, sample};
use super::*;

const THEME: Theme = Theme { has_colors: true, has_unicode: true };

fn model(sample: Sample) -> Model {
    Model::new(sample, View::Workers, Duration::from_secs(1))
}

/// Draws a screen of this size.
fn draw(model: &mut Model, theme: Theme, (width, height): (u16, u16)) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("terminal");
    let draw = |frame: &mut ratatui::Frame| {
        let area = frame.area();
        let mut canvas = Canvas { buffer: frame.buffer_mut(), theme };
        draw_screen(model, &mut canvas, area, Instant::now());
    };
    terminal.draw(draw).expect("draw");
    terminal.backend().buffer().clone()
}

fn lines(buffer: &Buffer) -> Vec<String> {
    buffer_text(buffer).lines().map(str::to_string).collect()
}

/// Returns the line with this text, and its number.
fn find(buffer: &Buffer, text: &str) -> (u16, String) {
    let found = (0..).zip(lines(buffer)).find(|(_, line)| line.contains(text));
    found.unwrap_or_else(|| panic!("{text} is not in\n{}", buffer_text(buffer)))
}

#[test]
fn a_wide_screen_has_summary_tabs_table_and_keys() {
    let screen = draw(&mut model(sample(|_| {})), THEME, (140, 20));
    let lines = lines(&screen);
    assert!(lines[0].starts_with("prefork 0.1.0  running  generation 2  up 3 min"), "{lines:#?}");
    assert!(lines[1].starts_with("1/2 serve  5 respawns"), "{lines:#?}");
    assert_eq!(lines[4], "1 workers  2 pools  3 events  4 shared  every 1 s");
    let head: Vec<&str> = lines[5].split_whitespace().collect();
    assert_eq!(
        head,
        [
            "SLOT▲", "WORKER", "GEN", "PID", "STATE", "UP", "REQ/S", "ACTIVE", "CONNS", "LAG",
            "RSS", "CPU%", "AGE", "REQUEST"
        ]
    );
    assert!(lines[6].contains("4712") && lines[6].ends_with("12 s  GET /spin (on loop)"));
    assert!(lines[19].starts_with("? help  q quit"), "{lines:#?}");
}

#[test]
fn a_frozen_worker_is_red_and_a_draining_one_yellow() {
    let mut model = model(sample(|status| {
        status.workers[0].heartbeat_age_ms = Some(5_000);
        status.workers[1].state = tokio_prefork::status::WorkerState::Draining;
    }));
    let screen = draw(&mut model, THEME, (120, 20));
    let color_of = |text: &str| {
        let (y, line) = find(&screen, text);
        let x = line.find(text).expect("column") as u16;
        screen[(x, y)].fg
    };
    assert_eq!(color_of("  frozen   "), Color::Red);
    assert_eq!(color_of("  draining  "), Color::Yellow);
    assert_eq!(color_of("1 frozen"), Color::Red);
    let plain = Theme { has_colors: false, ..THEME };
    let screen = draw(&mut model, plain, (120, 20));
    assert!(screen.content.iter().all(|cell| cell.fg == Color::Reset));
    find(&screen, "frozen");
}

#[test]
fn every_size_can_be_drawn_in_every_view() {
    for view in View::ALL {
        let mut sample = sample(|_| {});
        sample.events = vec![event(1, "warn", &"long text ".repeat(50))];
        let mut model = Model::new(sample, view, Duration::from_secs(1));
        for overlay in [None, Some(Action::Accept), Some(Action::Help)] {
            overlay.map(|action| model.handle(action));
            for height in 1..17 {
                for width in [1, 2, 5, 20, 80, 200] {
                    draw(&mut model, THEME, (width, height));
                }
            }
            if overlay.is_some() {
                model.handle(Action::Back);
            }
        }
    }
}

#[test]
fn a_tiny_terminal_shows_slot_state_and_rate() {
    let screen = draw(&mut model(sample(|_| {})), THEME, (20, 5));
    let lines = lines(&screen);
    assert_eq!(lines[0], "1/2 serve  - req/s");
    assert!(lines[1].starts_with("SLOT▲ STATE"), "{lines:?}");
    assert!(lines[2].contains("0 serving") && lines[3].contains("1 forking"), "{lines:?}");
}

#[test]
fn eighty_columns_have_room_for_the_request() {
    let many = sample(|status| {
        status.workers[0].serving[1].request =
            "GET /a/very/long/path/that/does/not/fit".to_string();
    });
    let screen = draw(&mut model(many), THEME, (80, 24));
    let (_, line) = find(&screen, "GET /");
    assert!(line.ends_with('…') && line.chars().count() == 80, "{line}");
    let ascii = Theme { has_unicode: false, ..THEME };
    let screen = draw(&mut model(sample(|_| {})), ascii, (80, 24));
    assert!(buffer_text(&screen).is_ascii());
}

#[test]
fn the_selected_row_of_many_is_visible() {
    let many = sample(|status| {
        let worker = status.workers[0].clone();
        status.workers = (0..200)
            .map(|n| {
                let mut worker = worker.clone();
                (worker.id.0, worker.slot.0) = (1000 + u64::from(n), n);
                worker
            })
            .collect();
    });
    let mut model = model(many);
    draw(&mut model, THEME, (100, 20));
    model.handle(Action::MoveToEnd);
    find(&draw(&mut model, THEME, (100, 20)), " 1199 ");
    model.handle(Action::MovePages(-1));
    find(&draw(&mut model, THEME, (100, 20)), " 1186 ");
    model.handle(Action::MoveToStart);
    find(&draw(&mut model, THEME, (100, 20)), " 1000 ");
}

#[test]
fn rows_scroll_only_as_far_as_needed() {
    assert_eq!(first_row(0, 0, 10, 200), 0);
    assert_eq!(first_row(0, 10, 10, 200), 1);
    assert_eq!(first_row(50, 55, 10, 200), 50);
    assert_eq!(first_row(50, 40, 10, 200), 40);
    assert_eq!(first_row(195, 199, 10, 200), 190);
    assert_eq!(first_row(5, 0, 0, 3), 1);
    assert_eq!(first_row(5, 1, 10, 3), 0);
}

#[test]
fn wide_characters_and_hostile_texts_keep_the_columns() {
    let mut model = model(sample(|status| {
        status.workers[0].kind = "日本語".to_string();
        status.workers[1].kind = "\u{1b}[31mred\u{202e}".to_string();
        status.primary.name = "a\r\nb".to_string();
    }));
    let screen = draw(&mut model, THEME, (160, 20));
    let text = buffer_text(&screen);
    assert!(!text.contains(['\u{1b}', '\u{202e}', '\r']), "{text}");
    let column_of = |text: &str| {
        let (_, line) = find(&screen, text);
        display_width(&line[..line.find(text).expect("column")])
    };
    assert_eq!(column_of("serving"), column_of("forking"));
}

#[test]
fn why_the_connection_is_lost_is_told_in_the_last_lines() {
    let mut model = model(sample(|_| {}));
    let reason = "the primary at /run/prefork.sock does not answer: it is stopped\u{7} by a signal";
    model.apply(Err(reason.to_string()), Instant::now());
    for (size, count) in [((120, 20), 1), ((60, 20), 2), ((40, 5), 1), ((20, 40), 3)] {
        let screen = draw(&mut model, THEME, size);
        let lines = lines(&screen);
        let message = lines[lines.len() - count..].join(" ");
        assert!(message.starts_with("connection lost") && !message.contains('\u{7}'), "{message}");
        assert_eq!(
            count != 1 || size.0 > 100,
            message.ends_with("signal") || size.0 < 40,
            "{lines:#?}"
        );
    }
}

#[test]
fn the_filter_is_shown_while_it_is_typed() {
    let mut model = model(sample(|_| {}));
    model.handle(Action::StartFilter);
    "spin".chars().for_each(|c| _ = model.handle(Action::Type(c)));
    assert_eq!(lines(&draw(&mut model, THEME, (60, 4)))[3], "filter: spin_");
    let screen = draw(&mut model, THEME, (60, 20));
    assert_eq!(lines(&screen)[19], "filter: spin_");
    assert!(!buffer_text(&screen).contains("forking"));
}

#[test]
fn details_wrap_and_scroll_to_their_end() {
    let mut sample = sample(|_| {});
    let text = format!("worker=3 {}", "stalled in a handler ".repeat(20));
    sample.events = (1..=30).map(|n| event(n, "warn", &format!("{text}{n}"))).collect();
    let mut model = model(sample);
    model.handle(Action::Accept);
    let screen = draw(&mut model, THEME, (60, 20));
    find(&screen, "Worker 3: slot 0");
    model.handle(Action::MoveToEnd);
    let screen = draw(&mut model, THEME, (60, 20));
    let before_last = lines(&screen)[18].clone();
    assert!(before_last.ends_with(" 1"), "{before_last}");
}

#[test]
fn text_is_wrapped_at_spaces_and_long_words_are_cut() {
    assert_eq!(wrap("one two three", 8), ["one two", "three"]);
    assert_eq!(wrap("abcdefghij k", 4), ["abcd", "efgh", "ij k"]);
    assert_eq!(wrap("日本語日本語", 5), ["日本", "語日", "本語"]);
    assert_eq!(wrap("", 5), [""]);
}
