package task

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Version is a template's semantic version, such as 1.4.0 or 2.0.0-rc.1. Build metadata is not part of it.
type Version struct {
	Major, Minor, Patch int
	Pre                 string // identifiers joined by dots; empty: a release
}

// FirstVersion is what a template's first version is called where nobody named it.
var FirstVersion = Version{Minor: 1}

// maxVersionNumber bounds major, minor and patch, as the contract does.
const maxVersionNumber = 999_999_999

// maxVersionLen bounds the text of a version, as the contract does.
const maxVersionLen = 255

// ParseVersion reads a version as the contract spells it: no leading v, no leading zeros, nothing left out.
func ParseVersion(s string) (v Version, ok bool) {
	if len(s) > maxVersionLen {
		return Version{}, false
	}
	core, pre, isPre := strings.Cut(s, "-")
	numbers := strings.Split(core, ".")
	if len(numbers) != 3 {
		return Version{}, false
	}
	for i, into := range []*int{&v.Major, &v.Minor, &v.Patch} {
		n := numbers[i]
		if !isNumeric(n) || n[0] == '0' && n != "0" || len(n) > 9 {
			return Version{}, false
		}
		*into, _ = strconv.Atoi(n)
	}
	if !isPre {
		return v, true
	}
	for identifier := range strings.SplitSeq(pre, ".") {
		if !isIdentifier(identifier) || isNumeric(identifier) && identifier[0] == '0' && identifier != "0" {
			return Version{}, false
		}
	}
	v.Pre = pre
	return v, true
}

func isIdentifier(s string) bool {
	for _, c := range []byte(s) {
		if letter := c | 0x20; !isDigit(c) && (letter < 'a' || letter > 'z') && c != '-' {
			return false
		}
	}
	return s != ""
}

func isNumeric(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

func (v Version) String() string {
	s := fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch)
	if v.Pre != "" {
		s += "-" + v.Pre
	}
	return s
}

// Order is the version as a list of texts that compare, one by one, byte by byte, a shorter list before its continuations,
// as the versions do: 0.9.0 < 0.10.0-rc.2 < 0.10.0-rc.10 < 0.10.0-rc.10.x < 0.10.0. It is what the database sorts by.
func (v Version) Order() []string {
	order := []string{fmt.Sprintf("%09d", v.Major), fmt.Sprintf("%09d", v.Minor), fmt.Sprintf("%09d", v.Patch)}
	if v.Pre == "" {
		return append(order, "2") // above every pre-release
	}
	for identifier := range strings.SplitSeq(v.Pre, ".") {
		if isNumeric(identifier) { // by value, below every other identifier
			order = append(order, fmt.Sprintf("0%03d%s", len(identifier), identifier))
		} else {
			order = append(order, "1"+identifier)
		}
	}
	return order
}

// Compare tells whether v is older than (-1), the same as (0) or newer than (1) other.
func (v Version) Compare(other Version) int { return slices.Compare(v.Order(), other.Order()) }

// NextPatch is the next release after v: patch + 1, of a pre-release too. There is none after the greatest patch number.
func (v Version) NextPatch() (next Version, ok bool) {
	if v.Patch >= maxVersionNumber {
		return Version{}, false
	}
	return Version{Major: v.Major, Minor: v.Minor, Patch: v.Patch + 1}, true
}

// Latest is the newest of versions: the greatest release, or the greatest pre-release where there is no release.
func Latest(versions []Version) (latest Version, ok bool) {
	for i, v := range versions {
		newer := v.Compare(latest) > 0
		if isRelease := v.Pre == ""; isRelease != (latest.Pre == "") {
			newer = isRelease
		}
		if i == 0 || newer {
			latest = v
		}
	}
	return latest, len(versions) > 0
}
