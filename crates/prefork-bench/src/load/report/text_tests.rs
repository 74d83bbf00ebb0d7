use super::*;
use crate::load::report::tests::sample;

#[test]
fn the_table_answers_each_question_in_a_line() {
    assert_eq!(
        table(&sample()),
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
fn figures_are_readable() {
    let times = [0.4, 999.0, 1500.0, 15_000.0, 2_500_000.0].map(time);
    assert_eq!(times, ["0 us", "999 us", "1.50 ms", "15 ms", "2.50 s"]);
    assert_eq!([7.0, 1234.0, 1_234_567.0].map(count), ["7", "1 234", "1 234 567"]);
    assert_eq!([999.0, 1500.0, 2.5e6, 3e9].map(bytes), ["999 B", "1.5 kB", "2.5 MB", "3.00 GB"]);
}

#[test]
fn what_is_unknown_is_left_out_and_what_was_lost_is_not() {
    let mut report = sample();
    report.pids.clear();
    report.server = None;
    report.ended_early = true;
    (report.abandoned, report.warm_up_failures) = (3, 4);
    let text = table(&report);
    assert!(!text.contains("PID") && !text.contains("server"), "{text}");
    for piece in ["ended early", "abandoned   3 requests", "and 4 in the warm-up"] {
        assert!(text.contains(piece), "{piece}: {text}");
    }
}
