package template_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/template"
)

func parse(t testing.TB, source string) *pb.Template {
	t.Helper()
	got, err := template.Parse("dir/user_registration.yaml", []byte(source), "")
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// The first template anybody wrote has neither a name nor a version.
func TestParseSeed(t *testing.T) {
	const source = `# ✅ Per-step configuration
steps:
  - name: create_user_account
    retry_limit: 5          # Circuit opens after 5 failures
    retryable: true
    handler_config:
      timeout: 30

  - name: send_billing_notification
    retry_limit: 3          # More sensitive - money involved
    retryable: true
    handler_config:
      timeout: 60
`
	want := &pb.Template{
		Name: "user_registration",
		Steps: []*pb.StepDefinition{
			{Name: "create_user_account", RetryLimit: proto.Int32(5), Retryable: proto.Bool(true), HandlerConfig: `{"timeout":30}`},
			{Name: "send_billing_notification", RetryLimit: proto.Int32(3), Retryable: proto.Bool(true), HandlerConfig: `{"timeout":60}`},
		},
	}
	if got := parse(t, source); !proto.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

func TestParseEveryField(t *testing.T) {
	got := parse(t, `
namespace: shop
name: signup
version: 1.10.0-rc.1
description: |
  Registers a user.
  Twice.
context_schema:
  type: object
  properties: {id: {type: integer, maximum: 9223372036854775808}}
  required: [id]
steps:
  - {name: create, handler: ~}
  - name: bill
    handler: notify
    depends_on: [create]
    retry_limit: 3
    retryable: false
    backoff: {initial: 500ms, multiplier: 1.5, max: 1m, jitter: 0}
    max_retry_after: 1h
    lease: 45s
    max_lost_leases: 2
    max_elapsed: 24h
    circuit: billing/eu
    priority: 0
    non_retryable_codes: [CARD_DECLINED, "404"]
    handler_config: '{"timeout": 3e1}'
`)
	want := &pb.Template{
		Namespace:     "shop",
		Name:          "signup",
		Version:       proto.String("1.10.0-rc.1"),
		Description:   "Registers a user.\nTwice.\n",
		ContextSchema: `{"type":"object","properties":{"id":{"type":"integer","maximum":9223372036854775808}},"required":["id"]}`,
		Steps: []*pb.StepDefinition{
			{Name: "create"},
			{
				Name:       "bill",
				Handler:    proto.String("notify"),
				DependsOn:  []string{"create"},
				RetryLimit: proto.Int32(3),
				Retryable:  proto.Bool(false),
				Backoff: &pb.BackoffPolicy{
					Initial: durationpb.New(500 * time.Millisecond), Multiplier: proto.Float64(1.5),
					Max: durationpb.New(time.Minute), Jitter: proto.Float64(0),
				},
				MaxRetryAfter:     durationpb.New(time.Hour),
				Lease:             durationpb.New(45 * time.Second),
				MaxLostLeases:     proto.Int32(2),
				MaxElapsed:        durationpb.New(24 * time.Hour),
				Circuit:           proto.String("billing/eu"),
				Priority:          proto.Int32(0),
				NonRetryableCodes: []string{"CARD_DECLINED", "404"},
				HandlerConfig:     `{"timeout": 3e1}`,
			},
		},
	}
	if !proto.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

func TestParseName(t *testing.T) {
	const named, unnamed = "name: own\nsteps: [{name: a}]", "steps: [{name: a}]"
	for _, tt := range []struct{ filename, source, name, want string }{
		{"dir/file.yaml", unnamed, "", "file"},
		{"file.v2.yml", unnamed, "", "file.v2"},
		{"file", unnamed, "", "file"},
		{"file.yaml", named, "", "own"},
		{"file.yaml", unnamed, "given", "given"},
		{"file.yaml", named, "given", "given"},
	} {
		got, err := template.Parse(tt.filename, []byte(tt.source), tt.name)
		if err != nil || got.GetName() != tt.want {
			t.Errorf("%s with %q: %v, %v; want %s", tt.filename, tt.name, got.GetName(), err, tt.want)
		}
	}
	if _, err := template.Parse("-", []byte(unnamed), ""); err == nil {
		t.Error("a file without a name gave a template without one")
	}
}

func TestPayloadKeepsSourceText(t *testing.T) {
	for source, want := range map[string]string{
		`{timeout: 30}`: `{"timeout":30}`,
		`{z: 1, a: 2}`:  `{"z":1,"a":2}`,
		`{a: 1e3, b: 1.50, c: -0, d: 1E+400, e: 123456789012345678901234567890}`:      `{"a":1e3,"b":1.50,"c":-0,"d":1E+400,"e":123456789012345678901234567890}`,
		`{a: "30", b: '1e3', c: !!str 5, d: 1.2.3, e: 2026-11-23, f: yes, g: "true"}`: `{"a":"30","b":"1e3","c":"5","d":"1.2.3","e":"2026-11-23","f":"yes","g":"true"}`,
		`{a: true, b: FALSE, c: null, d: ~, e: , f: "null"}`:                          `{"a":true,"b":false,"c":null,"d":null,"e":null,"f":"null"}`,
		`{a: [1, [], {}, "x"], 7: {true: 1}}`:                                         `{"a":[1,[],{},"x"],"7":{"true":1}}`,
		`{a: "<é&\u0000\"\n>"}`:                                                       `{"a":"<é&\u0000\"\n>"}`,
		`{}`:                                                                          `{}`,
		`'{ "a": 1 }'`:                                                                `{ "a": 1 }`,
		``:                                                                            ``,
		`~`:                                                                           ``,
	} {
		got := parse(t, "steps:\n  - name: a\n    handler_config: "+source)
		if config := got.GetSteps()[0].GetHandlerConfig(); config != want {
			t.Errorf("%s became %s, want %s", source, config, want)
		}
	}
}

func TestAnchorsAndMergeKeys(t *testing.T) {
	got := parse(t, `
steps:
  - &base
    name: a
    retry_limit: 5
    handler_config: &config {timeout: 30, url: "http://a"}
  - <<: *base
    name: b
    handler_config: {<<: *config, url: "http://b"}
  - <<: [{priority: 0}, *base]
    name: c
    depends_on: &up [a]
  - {name: d, depends_on: *up, handler_config: *config}
`)
	want := []*pb.StepDefinition{
		{Name: "a", RetryLimit: proto.Int32(5), HandlerConfig: `{"timeout":30,"url":"http://a"}`},
		{Name: "b", RetryLimit: proto.Int32(5), HandlerConfig: `{"url":"http://b","timeout":30}`},
		{Name: "c", RetryLimit: proto.Int32(5), Priority: proto.Int32(0), DependsOn: []string{"a"}, HandlerConfig: `{"timeout":30,"url":"http://a"}`},
		{Name: "d", DependsOn: []string{"a"}, HandlerConfig: `{"timeout":30,"url":"http://a"}`},
	}
	for i := range want {
		if !proto.Equal(got.GetSteps()[i], want[i]) {
			t.Errorf("got %v\nwant %v", got.GetSteps()[i], want[i])
		}
	}
}

func TestParseTellsWhereAndWhat(t *testing.T) {
	deep := strings.Repeat("{a: ", 101) + "1" + strings.Repeat("}", 101)
	for _, tt := range []struct{ source, want string }{
		{"", "t.yaml: the file holds no template"},
		{"# nothing\n", "t.yaml: the file holds no template"},
		{"steps: [", "t.yaml: yaml: line 1"},
		{"steps: [{name: a}]\n---\nsteps: []", "t.yaml:2: a second document"},
		{"steps: [{name: a}]\u2028", "t.yaml:1: a line is broken by an unusual character: use a newline, or write \\u2028"},
		{"steps: [{name: a}]\rname: b", "t.yaml: a line ends with a carriage return alone"},
		{"\xff\xfes\x00", "t.yaml: the file is not UTF-8"},
		{"[]", "t.yaml:1:1 expected fields for tasker.v1.Template, got sequence"},
		{"steps: {}", "t.yaml:1:8 expected sequence, got mapping"},
		{"name: b", "t.yaml:1:1 steps: must contain at least 1 item(s)"},
		{"steps:\n  - name: a\n    retry_limits: 3\n", "t.yaml:3:5 unknown field \"retry_limits\", expected one of name, handler, depends_on, "},
		{"steps:\n  - name: a\n    retryLimit: 3\n", "t.yaml:3:5 unknown field \"retryLimit\""},
		{"steps:\n  - 1: a\n", "t.yaml:2:5 unknown field \"1\""},
		{"steps:\n  - name: a\n    name: b\n", "t.yaml:3:5 \"name\" is given twice, first in line 2"},
		{"steps:\n  - name: a\n    handler_config: {x: 1, x: 2}\n", "t.yaml:3:28 \"x\" is given twice"},
		{"steps:\n  - name: a\n    retry_limit: 0\n", "t.yaml:3:18 steps[0].retry_limit: must be greater than or equal to 1"},
		{"steps:\n  - name: a\n    retry_limit: many\n", "t.yaml:3:18 invalid integer"},
		{"steps:\n  - name: a\n    lease: 30\n", "t.yaml:3:12 invalid duration"},
		{"steps:\n  - name: a\n    lease: 2s\n", "t.yaml:3:12 steps[0].lease"},
		{"steps:\n  - name: a b\n", "t.yaml:2:11 steps[0].name: "},
		{"steps:\n  - name: a\n    depends_on: [b]\n", "t.yaml:3:18 steps[0].depends_on[0]: \"a\" depends on \"b\", and there is no such step (UNKNOWN_DEPENDENCY)"},
		{"steps: [{name: a},\n {name: a}]", "t.yaml:2:9 steps[1].name: steps[0] bears this name too: \"a\" (DUPLICATE_STEP)"},
		{"steps:\n- {name: a, depends_on: [b]}\n- {name: b, depends_on: [a]}", "the steps depend on each other in a circle: a -> b -> a (DAG_CYCLE)"},
		{"steps:\n- name: a\n  handler_config: [1]", "t.yaml:3:19 must be a mapping, or one JSON object as text"},
		{"steps:\n- name: a\n  handler_config: 7", "t.yaml:3:19 must be a mapping, or one JSON object as text"},
		{"steps:\n- name: a\n  handler_config: '{\"a\":1,}'", "t.yaml:3:19 steps[0].handler_config: must be JSON (at byte 7) (VALIDATION)"},
		{"steps:\n- name: a\n  handler_config: {a: 0x1F}", "t.yaml:3:23 JSON cannot spell this number"},
		{"steps:\n- name: a\n  handler_config: {a: 0777}", "t.yaml:3:23 JSON cannot spell this number"},
		{"steps:\n- name: a\n  handler_config: {a: .inf}", "t.yaml:3:23 JSON cannot spell this number"},
		{"steps:\n- name: a\n  handler_config: {a: !!binary aGk=}", "t.yaml:3:23 JSON has no !!binary"},
		{"steps:\n- name: a\n  handler_config: {a: !!set {}, [1]: 2}", "t.yaml:3:33 a key must be a word"},
		{"steps:\n- name: a\n  handler_config: " + deep, "t.yaml:3:19 steps[0].handler_config: must not nest deeper than 100"},
		{"context_schema: x\nsteps: [{name: a}]", "t.yaml:1:17 context_schema: must be one JSON object (VALIDATION)"},
		{"steps:\n- &a {name: a, handler_config: *a}", "aliases make the file too large"},
		{"steps:\n- <<: 7\n  name: a", "t.yaml:2:7 << takes a mapping"},
		{"steps: " + strings.Repeat("[", 300) + strings.Repeat("]", 300), "t.yaml:1:208 nests deeper than 200"},
	} {
		_, err := template.Parse("t.yaml", []byte(tt.source), "")
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%.80q: got\n%v\nwant %s", tt.source, err, tt.want)
		}
	}
}

func TestParseShowsTheLine(t *testing.T) {
	_, err := template.Parse("t.yaml", []byte("steps:\n  - name: a\n    retry_limits: 3\n    retry_limit: 0\n    handler_config: {a: .nan}\n"), "")
	const want = `t.yaml:3:5 unknown field "retry_limits", expected one of`
	for _, excerpt := range []string{
		want,
		"   3 |     retry_limits: 3\n   3 | ....^\n",
		"   4 |     retry_limit: 0\n   4 | .................^",
		"   5 |     handler_config: {a: .nan}\n   5 | ........................^\n",
	} {
		if err == nil || !strings.Contains(err.Error(), excerpt) {
			t.Errorf("got\n%v\nwant\n%s", err, excerpt)
		}
	}
}

func TestParseTellsOnlySoMany(t *testing.T) {
	_, err := template.Parse("t.yaml", []byte("steps: [{name: a}]\n"+"x: 1\ny: 2\n"+manyUnknown(50)), "")
	if err == nil || strings.Count(err.Error(), "unknown field") != 20 || !strings.HasSuffix(err.Error(), "t.yaml: and 32 more") {
		t.Errorf("got\n%v", err)
	}
}

func manyUnknown(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "unknown%d: 1\n", i)
	}
	return b.String()
}

// A small file must not become a huge template.
func TestAliasBombs(t *testing.T) {
	for name, source := range map[string]string{
		"billion laughs": laughs(`a: &a0 [x, x, x, x, x, x, x, x, x]`, 12),
		"long text": "steps:\n- name: a\n  handler_config:\n    a: &a " + strings.Repeat("x", 500_000) + "\n    b: [" +
			strings.Repeat("*a, ", 100) + "]\n",
		"an ancestor, often": "steps: &a [" + strings.Repeat("*a, ", 1000) + "]",
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			_, err := template.Parse("t.yaml", []byte(source), "")
			if err == nil || !strings.Contains(err.Error(), "aliases make the file too large") {
				t.Errorf("got %.300v", err)
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

func laughs(first string, levels int) string {
	b := "steps:\n- name: a\n  handler_config:\n    " + first + "\n"
	for i := 1; i < levels; i++ {
		b += fmt.Sprintf("    a%d: &a%d [%s]\n", i, i, strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 9))
	}
	return b
}

func TestParseSizeLimit(t *testing.T) {
	source := "steps: [{name: a}]\n"
	source += strings.Repeat("#", template.MaxSize-len(source))
	if _, err := template.Parse("t.yaml", []byte(source), ""); err != nil {
		t.Error(err)
	}
	if _, err := template.Parse("t.yaml", []byte(source+"#"), ""); err == nil || !strings.Contains(err.Error(), "1048577 bytes, at most 1048576") {
		t.Errorf("got %v", err)
	}
}

func TestParseALargeTemplate(t *testing.T) {
	var b strings.Builder
	b.WriteString("steps:\n")
	for i := range 10_000 {
		fmt.Fprintf(&b, "- {name: step_%d, handler_config: {timeout: %d, url: http://a}", i, i+1)
		if i > 0 {
			fmt.Fprintf(&b, ", depends_on: [step_%d]", i-1)
		}
		b.WriteString("}\n")
	}
	if got := parse(t, b.String()); len(got.GetSteps()) != 10_000 || got.GetSteps()[9999].GetHandlerConfig() != `{"timeout":10000,"url":"http://a"}` {
		t.Errorf("%d steps", len(got.GetSteps()))
	}
}

func TestMarshalReads(t *testing.T) {
	got, err := template.Marshal(&pb.Template{
		Name: "signup", Version: proto.String("1.0.0"), Description: "Line one.\nLine two.\n",
		Steps: []*pb.StepDefinition{
			{Name: "create", RetryLimit: proto.Int32(5), HandlerConfig: `{"timeout":30,"ratio":1e3,"note":"30"}`, MaxRetryAfter: durationpb.New(90 * time.Second)},
			{Name: "null", DependsOn: []string{"create", "1"}, HandlerConfig: `{ "timeout": 30 }`, Lease: durationpb.New(7500 * time.Millisecond)},
		},
	})
	const want = `name: signup
version: 1.0.0
description: |
  Line one.
  Line two.
steps:
  - name: create
    retry_limit: 5
    max_retry_after: 90s
    handler_config:
      timeout: 30
      ratio: 1e3
      note: "30"
  - name: "null"
    depends_on: [create, "1"]
    lease: 7.5s
    handler_config: '{ "timeout": 30 }'
`
	if err != nil || string(got) != want {
		t.Errorf("got\n%s%v\nwant\n%s", got, err, want)
	}
}

// What is written is read back as the same message, whatever texts and numbers it holds.
func TestMarshalComesBack(t *testing.T) {
	text := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{
		"", " ", "~", "null", "true", "yes", "0x1", "1e3", "012", "-", "- a", "a: b", "#", "a #b", "<<", "*a", "&a", "!x", "|", ">", "%", "@", "\n", "a\n", "\na",
		" a\n", "a\n b\n\n", "\t", "a\tb\n", "\u0085", "\u2028", "\ufeff", "\u00a0", "😀", "\x7f", "2026-11-23", "12:30", ".inf", "a\r\nb", "'", "\"", "\\", "{}", "[]", "{a: 1}",
	}))
	number := rapid.SampledFrom([]string{"0", "-0", "1", "30", "1e3", "1.50", "1E+400", "-12.5e-7", "123456789012345678901234567890"})
	object := rapid.Custom(func(t *rapid.T) string {
		config := &strings.Builder{}
		keys := rapid.SliceOfNDistinct(text, 0, 4, quote).Draw(t, "keys")
		for _, key := range keys {
			value := rapid.OneOf(number, rapid.SampledFrom([]string{"null", "true", "[]", "{}", `[1,"a",{"b":[null]}]`, `"\u0041"`, ` 1`}), rapid.Map(text, quote)).Draw(t, "value")
			fmt.Fprintf(config, ",%s:%s", quote(key), value)
		}
		return "{" + strings.TrimPrefix(config.String(), ",") + "}"
	})
	rapid.Check(t, func(t *rapid.T) {
		in := &pb.Template{Name: "t", Description: text.Draw(t, "description"), ContextSchema: object.Draw(t, "schema")}
		for i := range rapid.IntRange(1, 3).Draw(t, "steps") {
			s := &pb.StepDefinition{Name: fmt.Sprintf("s%d", i), HandlerConfig: object.Draw(t, "config")}
			if rapid.Bool().Draw(t, "policy") {
				s.Lease = durationpb.New(time.Duration(rapid.Int64Range(int64(5*time.Second), int64(time.Hour)).Draw(t, "lease")))
				s.Backoff = &pb.BackoffPolicy{
					Initial: durationpb.New(0), Multiplier: proto.Float64(rapid.Float64Range(1, 100).Draw(t, "multiplier")),
					Jitter: proto.Float64(rapid.Float64Range(0, 1).Draw(t, "jitter")),
				}
				s.NonRetryableCodes = []string{text.Draw(t, "code") + "x"}
				if len(s.GetNonRetryableCodes()[0]) > 255 {
					s.NonRetryableCodes = nil
				}
			}
			in.Steps = append(in.Steps, s)
		}
		source, err := template.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		out, err := template.Parse("t.yaml", source, "")
		if err != nil {
			t.Fatalf("%v in\n%s", err, source)
		}
		if !proto.Equal(in, out) {
			t.Fatalf("%v came back as\n%v through\n%s", in, out, source)
		}
	})
}

func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "\r", `\r`, "\t", `\t`, "\x7f", "\x7f").Replace(
		strings.Map(func(r rune) rune {
			if r < ' ' && r != '\n' && r != '\r' && r != '\t' {
				return -1
			}
			return r
		}, strings.ToValidUTF8(s, "?"))) + `"`
}

// Whatever the file, it is read or refused, and what was read can be written and read again.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"steps:\n  - name: a\n    handler_config:\n      timeout: 30\n", "name: b\nsteps: [{name: a, depends_on: [b], lease: 30s}, {name: b}]",
		"steps:\n- &a {name: a, handler_config: {x: [1e3, *a]}}\n- <<: *a\n  name: b", "context_schema: '{}'\nsteps: [{name: a, backoff: {jitter: .5}}]",
		"---\n...\n", "%YAML 1.1\n---\nsteps: ~", "steps: !!seq [!!map {name: !!str a}]", "? [a]\n: b", "\"a\\x85b\": 1",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		first, err := template.Parse("t.yaml", data, "")
		if err != nil {
			_ = err.Error()
			return
		}
		source, err := template.Marshal(first)
		if err != nil {
			t.Fatal(err)
		}
		second, err := template.Parse("t.yaml", source, "")
		if err != nil || !proto.Equal(first, second) {
			t.Fatalf("%v came back as %v (%v) through\n%s", first, second, err, source)
		}
	})
}
