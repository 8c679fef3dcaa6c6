package rpc

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/task"
)

// schema is a context_schema, compiled.
type schema struct{ compiled *jsonschema.Schema }

// schemaURL names the schema in itself; no such place exists.
const schemaURL = "context_schema.json"

// errElsewhere refuses a schema that refers to another document: a template must mean the same for ever, on every server.
var errElsewhere = errors.New("references to other documents are refused")

// noLoader finds no document.
type noLoader struct{}

// Load refuses.
func (noLoader) Load(string) (any, error) { return nil, errElsewhere }

// compileSchema compiles a context_schema; nil for an empty one.
func compileSchema(field, text string) (_ *schema, err error) {
	if text == "" {
		return nil, nil //nolint:nilnil // no schema: any context satisfies it
	}
	if err := task.CheckObject(field, text, maxPayload); err != nil {
		return nil, err
	}
	doc, err := decodeForSchema(field, text)
	if err != nil {
		return nil, err
	}
	// A schema is a program of the caller's; what the compiler cannot bear is the caller's mistake.
	defer func() {
		if recover() != nil {
			err = task.Invalid(field, "cannot be compiled as a JSON Schema")
		}
	}()
	c := jsonschema.NewCompiler()
	c.UseLoader(noLoader{})
	if err := c.AddResource(schemaURL, doc); err != nil {
		return nil, task.Invalid(field, "cannot be compiled as a JSON Schema")
	}
	compiled, err := c.Compile(schemaURL)
	switch {
	case errors.Is(err, errElsewhere):
		return nil, task.Invalid(field, "%s", errElsewhere)
	case err != nil:
		return nil, task.Invalid(field, "is not a valid JSON Schema")
	}
	return &schema{compiled}, nil
}

// check holds a context, which is a JSON object, against the schema. The violations name places and rules, never values.
func (s *schema) check(field, context string) (err error) {
	if s == nil {
		return nil
	}
	doc, err := decodeForSchema(field, orObject(context))
	if err != nil {
		return err
	}
	defer func() {
		if recover() != nil {
			err = task.Invalid(field, "cannot be held against the template's context_schema")
		}
	}()
	var broken *jsonschema.ValidationError
	switch err := s.compiled.Validate(doc); {
	case errors.As(err, &broken):
		return schemaViolations(field, broken, nil)
	case err != nil:
		return task.Invalid(field, "cannot be held against the template's context_schema")
	}
	return nil
}

// schemaViolations collects the innermost errors: they name the place.
func schemaViolations(field string, e *jsonschema.ValidationError, found violations) violations {
	if len(e.Causes) > 0 {
		for _, cause := range e.Causes {
			found = schemaViolations(field, cause, found)
		}
		return found
	}
	for _, token := range e.InstanceLocation {
		field += "." + token
	}
	text := fmt.Sprintf("does not satisfy %q of the template's context_schema", strings.Join(e.ErrorKind.KeywordPath(), "/"))
	if lacks, ok := e.ErrorKind.(*kind.Required); ok {
		text = fmt.Sprintf("lacks %q, which the template's context_schema requires", strings.Join(lacks.Missing, `", "`))
	}
	return append(found, &pb.FieldViolation{Field: field, Description: text})
}

// maxExponent bounds the numbers that a schema may meet. It compares exactly, so that a number of a few bytes could cost
// megabytes and seconds.
const maxExponent = 1000

// decodeForSchema reads a JSON object that is to be compiled or compared.
func decodeForSchema(field, text string) (any, error) {
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		return nil, task.Invalid(field, "must be one JSON object")
	}
	if !comparable10(doc) {
		return nil, task.Invalid(field, "holds a number whose exponent is beyond %d: no schema can be applied to it", maxExponent)
	}
	return doc, nil
}

// comparable10 tells whether all numbers can be compared exactly at a bearable cost.
func comparable10(v any) bool {
	switch v := v.(type) {
	case map[string]any:
		for _, x := range v {
			if !comparable10(x) {
				return false
			}
		}
	case []any:
		for _, x := range v {
			if !comparable10(x) {
				return false
			}
		}
	case json.Number:
		at := strings.IndexAny(string(v), "eE")
		if at < 0 {
			return true
		}
		n, err := strconv.Atoi(strings.TrimPrefix(string(v[at+1:]), "+"))
		return err == nil && n >= -maxExponent && n <= maxExponent
	}
	return true
}
