package task_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/taskerhq/tasker/internal/task"
)

const mebibyte = 1 << 20

// nested is an object with depth levels in all.
func nested(depth int) string {
	return strings.Repeat(`{"a":`, depth-1) + "{}" + strings.Repeat("}", depth-1)
}

// wide is an object of n keys.
func wide(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"key%d":%d`, i, i)
	}
	return "{" + strings.TrimPrefix(b.String(), ",") + "}"
}

func TestCheckObjectTakes(t *testing.T) {
	for _, text := range []string{
		`{}`,
		" \t\r\n{ \n} ",
		`{"":null}`,
		`{"a":1e131071}`,
		`{"a":[1,-0,0.5,-1.25E-10,1e+9,123456789012345678901234567890,true,false,null,"x",{"a":{}},[]]}`,
		`{"a":"\u0000 \ud800 \udc00 \" \\ \/ \b\f\n\r\t é 😀"}`,
		`{"a":{"b":1},"b":{"a":1}}`,
		`{"A":1,"a":2}`,
		`{"a":[{"k":1},{"k":2}]}`,
		"{\"\u2028\":\"\u007f\"}",
		nested(100),
		`{"a":` + strings.Repeat("[", 99) + strings.Repeat("]", 99) + `}`,
		wide(10_000),
	} {
		if err := task.CheckObject("context", text, mebibyte); err != nil {
			t.Errorf("%.60s: %v", text, err)
		}
	}
}

func TestCheckObjectRefuses(t *testing.T) {
	for _, text := range []string{
		"", " ", "null", "1", `"a"`, "[]", "[{}]", "{", "}", `{"a"}`, `{"a":}`, `{"a":1,}`, `{,}`, `{"a" 1}`, `{"a":1 "b":2}`, `{} {}`,
		`{}x`, `{a:1}`, `{'a':1}`, `{1:1}`, `{"a":01}`, `{"a":+1}`, `{"a":.5}`, `{"a":1.}`, `{"a":1e}`, `{"a":-}`, `{"a":0x1}`, `{"a":NaN}`,
		`{"a":Infinity}`, `{"a":tru}`, `{"a":nulL}`, `{"a":[1,]}`, `{"a":[1}`, `{"a":"`, `{"a":"\`, `{"a":"\x"}`, `{"a":"\u12g4"}`, `{"a":"\u123`,
		"{\"a\":\"\n\"}", "{\"a\":\"\x00\"}", "{\"a\":1}\x00", "\x00{}", "{\"a\":\x001}", "\ufeff{}", "{\"a\":\"\xff\"}", "{\"\xed\xa0\x80\":1}", "{}/**/",
		`{"a":1,"a":2}`,
		`{"a":1,"\u0061":2}`,
		`{"a":[{"b":{"k":1,"k":1}}]}`,
		`{"\ud800":1,"\ud801":2}`,
		wide(10_000)[:len(wide(10_000))-1] + `,"key7":0}`,
		wide(8)[:len(wide(8))-1] + `,"key7":0}`,
		nested(101),
		nested(10_000),
		`{"a":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`,
		`{"a":` + strings.Repeat("[", 1_000_000),
	} {
		err := task.CheckObject("context", text, mebibyte)
		var refused *task.Error
		if !errors.As(err, &refused) || refused.Reason != task.Validation || refused.Field != "context" {
			t.Errorf("%.60q: %v", text, err)
		}
	}
}

func TestCheckObjectLimit(t *testing.T) {
	text := func(size int) string { return `{"a":"` + strings.Repeat("x", size-len(`{"a":""}`)) + `"}` }
	if err := task.CheckObject("success.results", text(mebibyte), mebibyte); err != nil {
		t.Error(err)
	}
	err := task.CheckObject("success.results", text(mebibyte+1), mebibyte)
	var refused *task.Error
	if !errors.As(err, &refused) || refused.Reason != task.PayloadTooLarge {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"field": "success.results", "size": "1048577", "limit": "1048576"} {
		if refused.Metadata[key] != want {
			t.Errorf("%s = %q, want %q", key, refused.Metadata[key], want)
		}
	}
}

// The standard library's parser is the judge of what is JSON; nesting and keys are counted with its tokens.
func FuzzCheckObject(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"a":1e131071}`, `{"a":[1,{"b":"\u0000\ud800"}],"a":2}`, `{"a":1,"\u0061":2}`, `{"a":"é"} `, nested(100), nested(101), wide(12), `[{}]`,
		`{"a":tru}`, `{"a":-0.0e-1}`, "{\"a\":\"\x7f\xff\"}",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got := task.CheckObject("context", text, mebibyte) == nil
		if want := len(text) <= mebibyte && isPlainObject(text); got != want {
			t.Errorf("%q: accepted = %v, want %v", text, got, want)
		}
	})
}

func isPlainObject(text string) bool {
	if !utf8.ValidString(text) || !json.Valid([]byte(text)) || !strings.HasPrefix(strings.TrimLeft(text, " \t\r\n"), "{") {
		return false
	}
	d := json.NewDecoder(bytes.NewReader([]byte(text)))
	d.UseNumber()
	type level struct {
		keys   map[string]bool // nil: an array
		atName bool
	}
	var open []level
	for {
		token, err := d.Token()
		if err != nil {
			return true
		}
		inObject := len(open) > 0 && open[len(open)-1].keys != nil
		if token == json.Delim('}') || token == json.Delim(']') {
			open = open[:len(open)-1]
			continue
		}
		if inObject {
			top := &open[len(open)-1]
			if top.atName {
				if top.keys[token.(string)] {
					return false
				}
				top.keys[token.(string)] = true
			}
			top.atName = !top.atName
		}
		switch token {
		case json.Delim('{'):
			open = append(open, level{keys: map[string]bool{}, atName: true})
		case json.Delim('['):
			open = append(open, level{})
		}
		if len(open) > 100 {
			return false
		}
	}
}

func BenchmarkCheckObject(b *testing.B) {
	for name, text := range map[string]string{
		"small":  `{"user_id": 8123, "email": "a@example.org", "plan": {"name": "pro", "seats": 5}, "tags": ["x", "y"]}`,
		"1MiB":   `{"a":"` + strings.Repeat("x", mebibyte-8) + `"}`,
		"keys":   wide(10_000),
		"escape": `{"\u0061":"` + strings.Repeat(`\n`, 1000) + `"}`,
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			b.ReportAllocs()
			for b.Loop() {
				if err := task.CheckObject("context", text, mebibyte); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
