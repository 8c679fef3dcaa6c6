package template

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

// jsonNumber is a number as JSON spells it.
var jsonNumber = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?$`)

// jsonWriter writes YAML nodes as JSON, without spaces.
type jsonWriter struct{ b bytes.Buffer }

// value writes a node. What JSON cannot say is returned with its node.
func (w *jsonWriter) value(node *yaml.Node) (at *yaml.Node, message string) {
	switch node.Kind {
	case yaml.MappingNode:
		w.b.WriteByte('{')
		for i := 0; i+1 < len(node.Content); i += 2 {
			if i > 0 {
				w.b.WriteByte(',')
			}
			w.text(node.Content[i].Value)
			w.b.WriteByte(':')
			if at, message = w.value(node.Content[i+1]); at != nil {
				return at, message
			}
		}
		w.b.WriteByte('}')
		return nil, ""
	case yaml.SequenceNode:
		w.b.WriteByte('[')
		for i, item := range node.Content {
			if i > 0 {
				w.b.WriteByte(',')
			}
			if at, message = w.value(item); at != nil {
				return at, message
			}
		}
		w.b.WriteByte(']')
		return nil, ""
	default:
		return w.scalar(node)
	}
}

// scalar writes a word, a number or a text. A number is copied as it stands, never computed with.
func (w *jsonWriter) scalar(node *yaml.Node) (at *yaml.Node, message string) {
	plain := node.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle|yaml.TaggedStyle) == 0
	// Numbers too large for any type of YAML's are texts to it.
	if plain && jsonNumber.MatchString(node.Value) {
		w.b.WriteString(node.Value)
		return nil, ""
	}
	switch tag := node.ShortTag(); tag {
	case "!!null":
		w.b.WriteString("null")
	case "!!bool":
		w.b.WriteString(strings.ToLower(node.Value))
	case "!!int", "!!float":
		if !jsonNumber.MatchString(node.Value) {
			return node, "JSON cannot spell this number, and YAML's versions read it differently: write it in plain decimals, or in quotes to mean a text"
		}
		w.b.WriteString(node.Value)
	case "!!str", "!!timestamp": // a date is a text to JSON
		w.text(node.Value)
	default:
		return node, "JSON has no " + tag
	}
	return nil, ""
}

func (w *jsonWriter) text(s string) {
	e := json.NewEncoder(&w.b)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // A string always can be.
	w.b.Truncate(w.b.Len() - len("\n"))
}
