// Package template reads templates that people write as YAML, and writes them back.
//
// A file holds one tasker.v1.Template, its fields under their names in the contract. handler_config and context_schema are
// written as ordinary mappings and become JSON objects here, key by key in their order and number by number in their own
// spelling: 1e3 stays 1e3, and no integer is too large. Anchors, aliases and merge keys (<<) work.
//
// Whatever is wrong is told with file, line, column and the line itself. Unknown fields, keys given twice and a second
// document are wrong, and so is all that the contract's rules refuse.
package template

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"buf.build/go/protovalidate"
	"buf.build/go/protoyaml"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/task"
)

const (
	// MaxSize is how large a file may be.
	MaxSize = 1 << 20
	// maxFaults is how many faults of a file are told at once.
	maxFaults = 20
	// maxPayload is how large a JSON object of a template may be.
	maxPayload = 1 << 20
)

// Faults are what is wrong with a file: at most 20, in the order of their lines.
type Faults []error

func (f Faults) Error() string {
	var b strings.Builder
	for _, fault := range f {
		b.WriteString(strings.TrimSuffix(fault.Error(), "\n"))
		b.WriteByte('\n')
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// Parse reads a template. filename names it in errors. name, where it is not empty, goes before the file's own; a file
// that names no template is named by its base name, without its extension.
func Parse(filename string, data []byte, name string) (*pb.Template, error) {
	if err := checkFile(filename, data); err != nil {
		return nil, err
	}
	rules, err := compileRules()
	if err != nil {
		return nil, err
	}
	p := &preparer{path: filename, lines: strings.Split(string(data), "\n")}
	t := &pb.Template{}
	err = protoyaml.UnmarshalOptions{
		Path:              filename,
		CustomUnmarshaler: p,
		Validator:         &checker{rules: rules, name: name, fallback: baseName(filename)},
	}.Unmarshal(data, t)
	if faults := append(p.faults, unjoin(err)...); len(faults) > 0 {
		if more := len(faults) - maxFaults; more > 0 {
			faults = append(faults[:maxFaults], fmt.Errorf("%s: and %d more", filename, more))
		}
		return nil, Faults(faults)
	}
	return t, nil
}

func baseName(filename string) string {
	base := filepath.Base(filename)
	return strings.TrimSuffix(base, filepath.Ext(base))
}

// checkFile looks at the file as a whole: the decoder takes the first document and passes over the rest.
func checkFile(filename string, data []byte) error {
	if len(data) > MaxSize {
		return fmt.Errorf("%s: %d bytes, at most %d are allowed", filename, len(data), MaxSize)
	}
	if !utf8.Valid(data) {
		return fmt.Errorf("%s: the file is not UTF-8", filename)
	}
	// YAML 1.1 breaks lines at these too. Nobody who writes one means to, and lines could not be told by number any more.
	if i := bytes.IndexAny(data, "\u0085\u2028\u2029"); i >= 0 {
		return fmt.Errorf("%s:%d: a line is broken by an unusual character: use a newline, or write \\u%04x in double quotes",
			filename, 1+bytes.Count(data[:i], []byte("\n")), bytes.Runes(data[i:])[0])
	}
	if bytes.Contains(bytes.ReplaceAll(data, []byte("\r\n"), nil), []byte("\r")) {
		return fmt.Errorf("%s: a line ends with a carriage return alone", filename)
	}
	d := yaml.NewDecoder(bytes.NewReader(data))
	var first, second yaml.Node
	switch err := d.Decode(&first); {
	case errors.Is(err, io.EOF):
		return fmt.Errorf("%s: the file holds no template", filename)
	case err != nil:
		return fmt.Errorf("%s: %w", filename, err)
	}
	switch err := d.Decode(&second); {
	case err == nil:
		return fmt.Errorf("%s:%d: a second document: a file holds one template", filename, second.Line)
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("%s: %w", filename, err)
	}
	return nil
}

// unjoin takes apart what the decoder joined.
func unjoin(err error) []error {
	var joined interface{ Unwrap() []error }
	switch {
	case err == nil:
		return nil
	case errors.As(err, &joined):
		return joined.Unwrap()
	}
	return []error{err}
}

// compileRules compiles the contract's rules once.
var compileRules = sync.OnceValues(func() (protovalidate.Validator, error) {
	rules, err := protovalidate.New(protovalidate.WithMessages(&pb.Template{}), protovalidate.WithDisableLazy())
	if err != nil {
		return nil, fmt.Errorf("compiling the contract's rules: %w", err)
	}
	return rules, nil
})

// checker is the decoder's Validator: it finishes the message and checks all of it. The decoder finds the place in the file
// of each field that it names.
type checker struct {
	rules          protovalidate.Validator
	name, fallback string
}

// Validate gives the template its name and checks it by the contract's rules, then as a whole.
func (c *checker) Validate(m proto.Message) error {
	t, ok := m.(*pb.Template)
	if !ok {
		return fmt.Errorf("a template was expected, not a %T", m)
	}
	if c.name != "" {
		t.Name = c.name
	} else if t.GetName() == "" {
		t.Name = c.fallback
	}
	if err := c.rules.Validate(t); err != nil {
		return err
	}
	return violation(checkWhole(t))
}

// checkWhole checks what no rule of a single field can.
func checkWhole(t *pb.Template) error {
	if t.GetContextSchema() != "" {
		if err := task.CheckObject("context_schema", t.GetContextSchema(), maxPayload); err != nil {
			return err
		}
	}
	steps := make([]task.NamedStep, len(t.GetSteps()))
	for i, s := range t.GetSteps() {
		steps[i] = task.NamedStep{Name: s.GetName(), DependsOn: s.GetDependsOn()}
		if s.GetHandlerConfig() == "" {
			continue
		}
		if err := task.CheckObject(fmt.Sprintf("steps[%d].handler_config", i), s.GetHandlerConfig(), maxPayload); err != nil {
			return err
		}
	}
	_, err := task.CheckGraph(steps)
	return err
}

// violation says the same as a *task.Error in the words of the rules.
func violation(err error) error {
	var refused *task.Error
	if !errors.As(err, &refused) {
		return err
	}
	field := &validate.FieldPath{}
	for part := range strings.SplitSeq(refused.Field, ".") {
		name, subscript, indexed := strings.Cut(part, "[")
		element := &validate.FieldPathElement{FieldName: &name}
		if index, err := strconv.ParseUint(strings.TrimSuffix(subscript, "]"), 10, 64); indexed && err == nil {
			element.Subscript = &validate.FieldPathElement_Index{Index: index}
		}
		field.Elements = append(field.Elements, element)
	}
	return &protovalidate.ValidationError{Violations: []*protovalidate.Violation{{
		Proto: &validate.Violation{Field: field, RuleId: (*string)(&refused.Reason), Message: &refused.Message},
	}}}
}

// payloads are the fields that YAML writes as mappings and the contract as JSON.
var payloads = []string{"context_schema", "handler_config"}

func isPayload(field string) bool { return slices.Contains(payloads, field) }
