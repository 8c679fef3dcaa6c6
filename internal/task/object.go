package task

import (
	"encoding/json"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxNesting is how deep a payload may nest: within what the parsers of every language bear.
const maxNesting = 100

// CheckObject checks that a payload is one JSON object, so that it may be kept and handed on verbatim; it is never rewritten.
// field names it in the error. Numbers of any size and precision, \u0000 and lone surrogates written as escapes are
// ordinary JSON and pass.
//
// Refused are texts longer than limit bytes (PAYLOAD_TOO_LARGE); what is not UTF-8, not JSON or not an object, the empty
// text included; nesting deeper than 100; and an object that has one key twice, since languages differ in which of the two
// they would hand to a handler (all VALIDATION). The error repeats nothing of the payload.
func CheckObject(field, text string, limit int) error {
	if len(text) > limit {
		return Refuse(PayloadTooLarge, "%d bytes, at most %d are allowed", len(text), limit).
			At(field).With("field", field).With("size", strconv.Itoa(len(text))).With("limit", strconv.Itoa(limit))
	}
	if !utf8.ValidString(text) {
		return Invalid(field, "must be UTF-8")
	}
	s := scanner{text: text}
	s.space()
	if s.peek() != '{' {
		return Invalid(field, "must be one JSON object")
	}
	fault := s.value(0)
	if s.space(); fault == "" && s.at < len(text) {
		fault = "must end after one JSON object"
	}
	if fault != "" {
		return Invalid(field, "%s (at byte %d)", fault, s.at)
	}
	return nil
}

// scanner reads JSON (RFC 8259) without building anything. Its methods return what is wrong at byte `at`, or nothing.
type scanner struct {
	text string
	at   int
}

const (
	faultSyntax    = "must be JSON"
	faultNesting   = "must not nest deeper than 100"
	faultDuplicate = "must not have one key twice"
)

// peek is the next byte, 0 at the end. A NUL in the text reads the same and fits nowhere either.
func (s *scanner) peek() byte {
	if s.at < len(s.text) {
		return s.text[s.at]
	}
	return 0
}

func (s *scanner) space() {
	for s.at < len(s.text) && (s.text[s.at] == ' ' || s.text[s.at] == '\n' || s.text[s.at] == '\t' || s.text[s.at] == '\r') {
		s.at++
	}
}

// take reads c, after any space.
func (s *scanner) take(c byte) bool {
	s.space()
	if s.peek() != c {
		return false
	}
	s.at++
	return true
}

// value reads any value. depth is how many objects and arrays it stands in, which bounds the recursion.
func (s *scanner) value(depth int) (fault string) {
	s.space()
	switch c := s.peek(); {
	case c == '{' || c == '[':
		if depth == maxNesting {
			return faultNesting
		}
		s.at++
		if c == '{' {
			return s.object(depth + 1)
		}
		return s.array(depth + 1)
	case c == '"':
		_, fault = s.str()
		return fault
	case c == '-' || isDigit(c):
		return s.number()
	}
	for _, word := range [...]string{"true", "false", "null"} {
		if strings.HasPrefix(s.text[s.at:], word) {
			s.at += len(word)
			return ""
		}
	}
	return faultSyntax
}

// object reads what follows a brace.
func (s *scanner) object(depth int) (fault string) {
	if s.take('}') {
		return ""
	}
	var keys keySet
	for {
		s.space()
		key, fault := s.str()
		if fault != "" {
			return fault
		}
		if !keys.add(key) {
			return faultDuplicate
		}
		if !s.take(':') {
			return faultSyntax
		}
		if fault := s.value(depth); fault != "" {
			return fault
		}
		if s.take('}') {
			return ""
		}
		if !s.take(',') {
			return faultSyntax
		}
	}
}

// array reads what follows a bracket.
func (s *scanner) array(depth int) (fault string) {
	if s.take(']') {
		return ""
	}
	for {
		if fault := s.value(depth); fault != "" {
			return fault
		}
		if s.take(']') {
			return ""
		}
		if !s.take(',') {
			return faultSyntax
		}
	}
}

// str reads a string and gives its value.
func (s *scanner) str() (value, fault string) {
	if s.peek() != '"' {
		return "", faultSyntax
	}
	start, escaped := s.at, false
	for s.at++; s.at < len(s.text); s.at++ {
		switch c := s.text[s.at]; {
		case c == '"':
			s.at++
			if !escaped {
				return s.text[start+1 : s.at-1], ""
			}
			return unescape(s.text[start:s.at]), ""
		case c < ' ':
			return "", faultSyntax
		case c == '\\':
			escaped = true
			s.at++
			if !s.escape() {
				return "", faultSyntax
			}
		}
	}
	return "", faultSyntax
}

// escape reads what follows a backslash, but for its last byte.
func (s *scanner) escape() bool {
	switch s.peek() {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return true
	case 'u':
		for range 4 {
			s.at++
			if c := s.peek() | 0x20; !isDigit(s.peek()) && (c < 'a' || c > 'f') {
				return false
			}
		}
		return true
	}
	return false
}

// unescape gives a quoted string's value. Lone surrogates become U+FFFD, as in most parsers, so two keys that differ only
// in them count as one.
func unescape(quoted string) (value string) {
	if json.Unmarshal([]byte(quoted), &value) != nil {
		return quoted // unreachable: it was read before
	}
	return value
}

func (s *scanner) number() (fault string) {
	if s.peek() == '-' {
		s.at++
	}
	if s.peek() == '0' {
		s.at++
	} else if !s.digits() {
		return faultSyntax
	}
	if s.peek() == '.' {
		s.at++
		if !s.digits() {
			return faultSyntax
		}
	}
	if s.peek()|0x20 == 'e' {
		s.at++
		if s.peek() == '+' || s.peek() == '-' {
			s.at++
		}
		if !s.digits() {
			return faultSyntax
		}
	}
	return ""
}

func (s *scanner) digits() bool {
	start := s.at
	for isDigit(s.peek()) {
		s.at++
	}
	return s.at > start
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// keySet holds one object's keys: few of them, as is usual, without asking for memory.
type keySet struct {
	few  [8]string
	n    int
	many map[string]struct{}
}

// add reports whether key is new.
func (k *keySet) add(key string) bool {
	if k.many == nil {
		for _, known := range k.few[:k.n] {
			if known == key {
				return false
			}
		}
		if k.n < len(k.few) {
			k.few[k.n] = key
			k.n++
			return true
		}
		k.many = make(map[string]struct{}, 4*len(k.few))
		for _, known := range k.few {
			k.many[known] = struct{}{}
		}
	}
	if _, known := k.many[key]; known {
		return false
	}
	k.many[key] = struct{}{}
	return true
}
