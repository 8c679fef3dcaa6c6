package task_test

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/taskerhq/tasker/internal/task"
)

const maxHint = 100 * 365 * 24 * time.Hour

func TestParseRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	type want struct {
		source task.DelaySource
		after  time.Duration
		at     string
	}
	seconds := func(d time.Duration) want { return want{source: task.FromHeaderSeconds, after: d} }
	date := func(at string) want { return want{source: task.FromHeaderDate, at: at} }
	unreadable := want{source: task.FromHeaderUnreadable}

	for header, want := range map[string]want{
		"0":                             seconds(0),
		"120":                           seconds(2 * time.Minute),
		" \t120 \r\n":                   seconds(2 * time.Minute),
		"00000000000000000000000000007": seconds(7 * time.Second),
		"3153600000":                    seconds(maxHint),
		"3153600001":                    seconds(maxHint),
		"9223372036854775807":           seconds(maxHint),
		"9223372036854775808":           seconds(maxHint),
		strings.Repeat("9", 5000):       seconds(maxHint),
		"-0":                            seconds(0),
		"-1":                            seconds(-time.Second),
		"-" + strings.Repeat("9", 300):  seconds(-maxHint),

		"Sun, 06 Nov 1994 08:49:37 GMT":    date("1994-11-06T08:49:37Z"),
		"  Sun, 06 Nov 1994 08:49:37 GMT ": date("1994-11-06T08:49:37Z"),
		"sun, 06 nov 1994 08:49:37 GMT":    date("1994-11-06T08:49:37Z"),
		"Mon, 06 Nov 1994 08:49:37 GMT":    date("1994-11-06T08:49:37Z"), // it was a Sunday
		"Fri, 31 Dec 9999 23:59:59 GMT":    date("9999-12-31T23:59:59Z"),
		"Sat, 31 Dec 2016 23:59:60 GMT":    date("2017-01-01T00:00:00Z"), // a leap second
		"Sun Nov  6 08:49:37 1994":         date("1994-11-06T08:49:37Z"),
		"Wed Nov 16 08:49:37 2044":         date("2044-11-16T08:49:37Z"),
		"Sat Dec 31 23:59:60 2016":         date("2017-01-01T00:00:00Z"),

		"Sunday, 06-Nov-94 08:49:37 GMT":    date("1994-11-06T08:49:37Z"),
		"Wednesday, 25-Nov-26 08:49:37 GMT": date("2026-11-25T08:49:37Z"),
		"Monday, 23-Nov-76 12:00:00 GMT":    date("2076-11-23T12:00:00Z"), // 50 years ahead to the second
		"Monday, 23-Nov-76 12:00:01 GMT":    date("1976-11-23T12:00:01Z"), // and one more
		"Saturday, 01-Jan-77 00:00:00 GMT":  date("1977-01-01T00:00:00Z"),
		"Saturday, 01-Jan-00 00:00:00 GMT":  date("2000-01-01T00:00:00Z"),

		"":                              unreadable,
		" ":                             unreadable,
		"-":                             unreadable,
		"--1":                           unreadable,
		"+1":                            unreadable,
		"1.5":                           unreadable,
		"1e3":                           unreadable,
		"0x10":                          unreadable,
		"1 000":                         unreadable,
		"120s":                          unreadable,
		"١٢٠":                           unreadable,
		"120\x00":                       unreadable,
		"NaN":                           unreadable,
		"soon":                          unreadable,
		"2026-11-23T12:00:00Z":          unreadable,
		"Sun, 06 Nov 1994 08:49:37":     unreadable,
		"Sun, 06 Nov 1994 08:49:37 PST": unreadable,
		"Sun, 31 Feb 1994 08:49:37 GMT": unreadable,
		"Sun, 06 Nov 1994 24:00:00 GMT": unreadable,
		"Sun, 06 Nov 1994 08:60:00 GMT": unreadable,
		"Sun, 06 Nov 1994 08:49:61 GMT": unreadable,
	} {
		t.Run(fmt.Sprintf("%.40q", header), func(t *testing.T) {
			got := task.ParseRetryAfter(header, now)
			if got.Source != want.source {
				t.Fatalf("source = %s, want %s", got.Source, want.source)
			}
			if (got.After != nil) != (want.source == task.FromHeaderSeconds) || (got.At != nil) != (want.source == task.FromHeaderDate) {
				t.Fatalf("After = %v, At = %v with %s", got.After, got.At, got.Source)
			}
			if got.After != nil && *got.After != want.after {
				t.Errorf("after %v, want %v", *got.After, want.after)
			}
			if got.At != nil && got.At.Format(time.RFC3339Nano) != want.at {
				t.Errorf("at %v, want %v", got.At, want.at)
			}
		})
	}
}

// Near the turn of a century a two-digit year may lie in the next one.
func TestParseRetryAfterAcrossTheCentury(t *testing.T) {
	for _, tt := range []struct{ now, header, want string }{
		{"2090-06-01T00:00:00Z", "Monday, 01-Jun-05 00:00:00 GMT", "2105-06-01T00:00:00Z"},
		{"2099-12-31T23:59:59Z", "Friday, 01-Jan-00 00:00:10 GMT", "2100-01-01T00:00:10Z"},
		{"2001-01-01T00:00:00Z", "Friday, 31-Dec-99 23:59:59 GMT", "1999-12-31T23:59:59Z"},
	} {
		now, err := time.Parse(time.RFC3339, tt.now)
		if err != nil {
			t.Fatal(err)
		}
		hint := task.ParseRetryAfter(tt.header, now)
		if hint.At == nil || hint.At.Format(time.RFC3339) != tt.want {
			t.Errorf("in %s, %s is %v, want %s", tt.now, tt.header, hint.At, tt.want)
		}
	}
}

func FuzzParseRetryAfter(f *testing.F) {
	for _, seed := range []string{
		"120", "-3", "99999999999999999999", "Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT",
		"Sun Nov  6 08:49:37 1994", "Saturday, 29-Feb-00 23:59:60 GMT", "", "soon",
	} {
		f.Add(seed, int64(1_800_000_000))
	}
	f.Fuzz(func(t *testing.T, header string, unix int64) {
		now := time.Unix(unix%(1<<37), 0)
		hint := task.ParseRetryAfter(header, now)
		switch hint.Source {
		case task.FromHeaderSeconds:
			if hint.At != nil || hint.After == nil || *hint.After > maxHint || *hint.After < -maxHint {
				t.Errorf("%+v", hint)
			}
		case task.FromHeaderDate:
			if hint.After != nil || hint.At == nil || hint.At.Year() < 0 || math.Abs(float64(hint.At.Nanosecond())) > 1e9 {
				t.Errorf("%+v", hint)
			}
		case task.FromHeaderUnreadable:
			if hint.After != nil || hint.At != nil {
				t.Errorf("%+v", hint)
			}
		default:
			t.Errorf("source %q", hint.Source)
		}
	})
}
