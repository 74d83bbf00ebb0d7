use super::super::{DueRequests, SendDelay};
use super::*;
use crate::load::report::tests::sample_report;

#[test]
fn the_text_report_has_a_line_for_each_question() {
    let text = render_text(&sample_report());
    let (figures, environment) = text.split_once("\nmachine ").expect("the machine at the end");
    for line in ["\nkernel      Linux ", "\nversion     prefork ", "\ncommand ", "\ndate "] {
        assert!(environment.contains(line), "{line}: {environment}");
    }
    assert_eq!(
        figures,
        "GET http://127.0.0.1:3000/\n\
         64 connections in 2 threads, kept connections\n\
         measured for 1 s\n\
         \n\
         requests/s  1 000   responses 1 000   received 69.0 kB/s\n\
         latency     p50 500 us   p75 750 us   p90 900 us   p99 990 us   p99.9 999 us   max 1.00 ms   mean 501 us\n  \
           as wrk    p50 500 us   p75 750 us   p90 900 us   p99 990 us\n\
         errors      2 reset, 1 status 5xx\n\
         \n\
         PID  REQUESTS   SHARE  CONN     P50     P99      MAX\n  \
          8       750  75.0 %     1  627 us  995 us  1.00 ms\n  \
          7       250  25.0 %     1  125 us  249 us   251 us\n\
         balance     most/least 3.00, coefficient of variation 50.0 %\n\
         \n\
         server      pid 6 (prefork), 3 processes\n  \
           CPU       30.0 us/request (user 20.0, system 10.0)\n  \
           switches  1 234 voluntary, 5 involuntary\n  \
           memory    2.0 MiB PSS before, 3.0 after\n\
         generator   CPU 15.0 us/request, not in the above\n"
    );
}

#[test]
fn an_open_loop_says_how_late_requests_were_sent() {
    let mut report = sample_report();
    assert!(!render_text(&report).contains("sent late"));
    report.send_delay = Some(SendDelay { p50: 12.0, p99: 80.0, max: 1500.0 });
    let text = render_text(&report);
    assert!(text.contains("sent late   p50 12 us   p99 80 us   max 1.50 ms"), "{text}");
    assert!(!text.contains("a large part"), "{text}");
    report.send_delay = Some(SendDelay { p50: 12.0, p99: 500.0, max: 1500.0 });
    let text = render_text(&report);
    assert!(text.contains("a large part of the latency: use more connections"), "{text}");
}

#[test]
fn an_open_loop_says_what_became_of_the_requests_that_were_due() {
    let mut report = sample_report();
    let due = DueRequests {
        due: 1000,
        answered_in_time: 995,
        answered_after_end: 5,
        unanswered: 0,
        never_sent: 0,
    };
    report.due_requests = Some(due);
    assert!(!render_text(&report).contains("\ndue "), "a few are always in flight at the end");
    (report.timeout_s, report.due_requests) = (
        3.0,
        Some(DueRequests {
            answered_in_time: 500,
            answered_after_end: 480,
            unanswered: 20,
            never_sent: 12,
            ..due
        }),
    );
    let text = render_text(&report);
    let line = "due         1 000 requests: 500 answered in the measured time, 480 after its end, 20 without a response \
                (timeout 3 s); 12 of these were never sent, as no connection was free\n";
    assert!(text.contains(line), "{text}");
}

#[test]
fn unknown_values_are_omitted_and_failures_are_not() {
    let mut report = sample_report();
    report.pids.clear();
    report.server = None;
    report.ended_early = true;
    (report.abandoned, report.warm_up_failures) = (3, 4);
    let text = render_text(&report);
    assert!(!text.contains("PID") && !text.contains("server"), "{text}");
    for piece in ["ended early", "abandoned   3 requests", "and 4 in the warm-up"] {
        assert!(text.contains(piece), "{piece}: {text}");
    }
}
