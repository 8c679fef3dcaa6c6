package task

import (
	"strings"
	"time"
)

// maxHint bounds what a Retry-After header may ask for: far above every max_retry_after, far below what would overflow.
const maxHint = 100 * 365 * 24 * time.Hour

// ParseRetryAfter reads the value of an HTTP Retry-After header as it came: a number of seconds, or a date in one of HTTP's
// three formats. It never fails. A huge number is cut to a hundred years and a negative one stays negative: the step's own
// bounds, 0 and max_retry_after, are applied where the delay is computed. What cannot be read gives neither After nor At.
//
// now decides only which century a two-digit year belongs to.
func ParseRetryAfter(header string, now time.Time) Hint {
	text := strings.Trim(header, " \t\r\n")
	if after, ok := parseSeconds(text); ok {
		return Hint{Source: FromHeaderSeconds, After: &after}
	}
	if at, ok := parseHTTPDate(text, now); ok {
		return Hint{Source: FromHeaderDate, At: &at}
	}
	return Hint{Source: FromHeaderUnreadable}
}

// parseSeconds reads decimal digits, with a minus sign at most: no fraction, exponent, plus sign or other script's digits.
func parseSeconds(text string) (time.Duration, bool) {
	digits, negative := strings.CutPrefix(text, "-")
	if digits == "" {
		return 0, false
	}
	var seconds time.Duration
	for _, c := range []byte(digits) {
		if c < '0' || c > '9' {
			return 0, false
		}
		seconds = min(seconds*10+time.Duration(c-'0'), maxHint/time.Second)
	}
	if negative {
		seconds = -seconds
	}
	return seconds * time.Second, true
}

// The formats of RFC 9110, section 5.6.7. The zone is always GMT, asctime's unsaid.
const (
	imfFixdate = "Mon, 02 Jan 2006 15:04:05 GMT"
	rfc850Date = "Monday, 02-Jan-06 15:04:05 GMT"
	ascTime    = "Mon Jan _2 15:04:05 2006"
)

// parseHTTPDate reads a date. A weekday that does not belong to it is passed over.
func parseHTTPDate(text string, now time.Time) (time.Time, bool) {
	// A leap second is a valid time of day that package time does not know: read the second before it.
	leap := strings.Contains(text, ":60 ")
	if leap {
		text = strings.Replace(text, ":60 ", ":59 ", 1)
	}
	at, err := time.Parse(imfFixdate, text)
	if err != nil {
		at, err = time.Parse(ascTime, text)
	}
	if err != nil {
		if at, err = time.Parse(rfc850Date, text); err == nil {
			at = nearestCentury(at, now)
		}
	}
	if err != nil {
		return time.Time{}, false
	}
	if leap {
		at = at.Add(time.Second)
	}
	return at, true
}

// nearestCentury puts a date with a two-digit year into now's century, or into the one before where that would be more
// than 50 years ahead: the rule of RFC 9110.
func nearestCentury(at, now time.Time) time.Time {
	now = now.UTC()
	in := func(year int) time.Time {
		return time.Date(year, at.Month(), at.Day(), at.Hour(), at.Minute(), at.Second(), 0, time.UTC)
	}
	year := now.Year() - now.Year()%100 + at.Year()%100
	latest := now.AddDate(50, 0, 0)
	year += 100 // the century after now's counts too: in 2090, "05" is 2105
	for in(year).After(latest) {
		year -= 100
	}
	return in(year)
}
