package template

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/task"
)

// Marshal writes a valid template as YAML that Parse reads back as the same message. Payloads are written as mappings where
// that loses nothing of their text, else as the text itself.
func Marshal(t *pb.Template) ([]byte, error) {
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	node, err := messageNode(t.ProtoReflect())
	if err != nil {
		return nil, err
	}
	if err := e.Encode(node); err != nil {
		return nil, fmt.Errorf("writing template %s as YAML: %w", t.GetName(), err)
	}
	if err := e.Close(); err != nil {
		return nil, fmt.Errorf("writing template %s as YAML: %w", t.GetName(), err)
	}
	return b.Bytes(), nil
}

func messageNode(m protoreflect.Message) (*yaml.Node, error) {
	if d, ok := m.Interface().(*durationpb.Duration); ok {
		return textNode(durationText(d)), nil
	}
	node := &yaml.Node{Kind: yaml.MappingNode}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		if !m.Has(field) {
			continue
		}
		value, err := fieldNode(field, m.Get(field))
		if err != nil {
			return nil, err
		}
		node.Content = append(node.Content, textNode(string(field.Name())), value)
	}
	return node, nil
}

func fieldNode(field protoreflect.FieldDescriptor, v protoreflect.Value) (*yaml.Node, error) {
	if !field.IsList() {
		return singleNode(field, v)
	}
	node := &yaml.Node{Kind: yaml.SequenceNode}
	if field.Message() == nil {
		node.Style = yaml.FlowStyle
	}
	for i := range v.List().Len() {
		item, err := singleNode(field, v.List().Get(i))
		if err != nil {
			return nil, err
		}
		node.Content = append(node.Content, item)
	}
	return node, nil
}

func singleNode(field protoreflect.FieldDescriptor, v protoreflect.Value) (*yaml.Node, error) {
	switch {
	case field.Message() != nil:
		return messageNode(v.Message())
	case isPayload(string(field.Name())):
		return payloadNode(v.String()), nil
	case field.Kind() == protoreflect.StringKind:
		return textNode(v.String()), nil
	}
	node := &yaml.Node{}
	if err := node.Encode(v.Interface()); err != nil {
		return nil, fmt.Errorf("writing %s: %w", field.FullName(), err)
	}
	return node, nil
}

// textNode is a text that is read back as itself. The encoder quotes what YAML would take for something else; what Parse
// would take for something else is quoted here.
func textNode(s string) *yaml.Node {
	node := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
	switch {
	case s == "<<", jsonNumber.MatchString(s), strings.ContainsFunc(strings.ReplaceAll(s, "\n", ""), isOdd),
		s != "" && strings.ContainsRune(" \n", rune(s[0])), strings.HasSuffix(s, " "), strings.HasSuffix(s, "\n\n"):
		node.Style = yaml.DoubleQuotedStyle
	case strings.Contains(s, "\n"):
		node.Style = yaml.LiteralStyle
	}
	return node
}

// isOdd tells characters that a block of text would not keep, or not show.
func isOdd(r rune) bool {
	return r < ' ' || 0x7f <= r && r < 0xa0 || r == '\u2028' || r == '\u2029' || r == '\ufeff' || r >= 0xfff0 && r <= 0xffff
}

// durationText spells a duration exactly, in seconds.
func durationText(d *durationpb.Duration) string {
	if d.GetNanos() == 0 {
		return fmt.Sprintf("%ds", d.GetSeconds())
	}
	sign, seconds, nanos := "", d.GetSeconds(), d.GetNanos()
	if seconds < 0 || nanos < 0 {
		sign, seconds, nanos = "-", -seconds, -nanos
	}
	return fmt.Sprintf("%s%d.%ss", sign, seconds, strings.TrimRight(fmt.Sprintf("%09d", nanos), "0"))
}

// payloadNode writes a JSON object as a mapping if reading that gives the very same text.
func payloadNode(text string) *yaml.Node {
	if task.CheckObject("", text, maxPayload) != nil {
		return textNode(text)
	}
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	node := jsonNode(d)
	w := &jsonWriter{}
	if at, _ := w.value(node); at != nil || w.b.String() != text {
		return textNode(text)
	}
	return node
}

// jsonNode reads the next value, which is known to be well-formed and not to nest deep.
func jsonNode(d *json.Decoder) *yaml.Node {
	token, err := d.Token()
	if err != nil {
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Value: "null"}
	}
	switch token := token.(type) {
	case json.Delim:
		node := &yaml.Node{Kind: yaml.SequenceNode}
		if token == '{' {
			node.Kind = yaml.MappingNode
		}
		for d.More() {
			node.Content = append(node.Content, jsonNode(d))
		}
		_, _ = d.Token() // the closing one
		return node
	case json.Number:
		return &yaml.Node{Kind: yaml.ScalarNode, Value: token.String()}
	case string:
		return textNode(token)
	case bool:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: fmt.Sprint(token)}
	default:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Value: "null"}
	}
}
