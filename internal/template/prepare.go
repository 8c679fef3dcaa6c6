package template

import (
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

const (
	// maxDepth is how deep a file may nest: deeper than any payload may, which has a better error of its own.
	maxDepth = 200
	// maxCopied bounds what aliases copy, in bytes, so that a small file cannot become a huge template.
	maxCopied = 8 << 20
	// nodeCost is what a copied node counts for on top of its text.
	nodeCost = 32
)

// preparer turns the nodes of a file into what the decoder takes, in place. It is the decoder's CustomUnmarshaler, called
// with each message's node before it is decoded; it decodes none itself.
type preparer struct {
	path   string
	lines  []string
	faults []error
	copied int
}

// fault is one thing that is wrong, in the decoder's own form.
type fault struct {
	path, line, message string
	lineNo, column      int
}

func (f *fault) Error() string {
	return fmt.Sprintf("%s:%d:%d %s\n%4d | %s\n%4d | %s^\n", f.path, f.lineNo, f.column, f.message, f.lineNo, f.line, f.lineNo,
		strings.Repeat(".", f.column-1))
}

func (p *preparer) addf(node *yaml.Node, format string, args ...any) {
	p.faults = append(p.faults, &fault{p.path, p.lines[node.Line-1], fmt.Sprintf(format, args...), node.Line, node.Column})
}

// Unmarshal prepares the whole file when it is called with the first message, the template itself.
func (p *preparer) Unmarshal(node *yaml.Node, m proto.Message) (bool, error) {
	if t, ok := m.(*pb.Template); ok {
		if !p.expand(node, 0) {
			return true, nil // half a file would only give faults that are not there
		}
		p.message(node, t.ProtoReflect().Descriptor())
	}
	return false, nil
}

// expand replaces aliases and merge keys by what they stand for, and refuses keys given twice.
func (p *preparer) expand(node *yaml.Node, depth int) (ok bool) {
	node.Line = min(node.Line, len(p.lines)) // what is missing at the end of a file may stand below its last line
	if depth > maxDepth {
		p.addf(node, "nests deeper than %d", maxDepth)
		return false
	}
	for i, child := range node.Content {
		if child.Kind == yaml.AliasNode {
			child.Line = min(child.Line, len(p.lines))
			target, ok := p.copy(child.Alias, child, depth)
			if !ok {
				return false
			}
			node.Content[i] = target
		}
		if !p.expand(node.Content[i], depth+1) {
			return false
		}
	}
	node.Anchor = ""
	return node.Kind != yaml.MappingNode || p.merge(node) && p.unique(node)
}

// copy copies what an alias stands for. The original may itself hold aliases, even one to an ancestor: the bounds end that.
func (p *preparer) copy(node, alias *yaml.Node, depth int) (*yaml.Node, bool) {
	if node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	p.copied += nodeCost + len(node.Value)
	if depth > maxDepth || p.copied > maxCopied {
		p.addf(alias, "aliases make the file too large")
		return nil, false
	}
	c := *node
	c.Content = make([]*yaml.Node, len(node.Content))
	for i, child := range node.Content {
		var ok bool
		if c.Content[i], ok = p.copy(child, alias, depth+1); !ok {
			return nil, false
		}
	}
	return &c, true
}

// merge puts the fields of << into its mapping. The mapping's own go before them, and earlier ones before later ones.
func (p *preparer) merge(node *yaml.Node) bool {
	var own, merged []*yaml.Node
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		if key.ShortTag() != "!!merge" {
			own = append(own, key, value)
			continue
		}
		sources := []*yaml.Node{value}
		if value.Kind == yaml.SequenceNode {
			sources = value.Content
		}
		for _, source := range sources {
			if source.Kind != yaml.MappingNode {
				p.addf(source, "<< takes a mapping, or a list of mappings")
				return false
			}
			merged = append(merged, source.Content...)
		}
	}
	if merged == nil {
		return true
	}
	known := map[string]bool{}
	for i := 0; i < len(own); i += 2 {
		known[own[i].Value] = true
	}
	for i := 0; i+1 < len(merged); i += 2 {
		if key := merged[i].Value; !known[key] {
			known[key] = true
			own = append(own, merged[i], merged[i+1])
		}
	}
	node.Content = own
	return true
}

func (p *preparer) unique(node *yaml.Node) bool {
	first := make(map[string]*yaml.Node, len(node.Content)/2)
	for i := 0; i < len(node.Content); i += 2 {
		key := node.Content[i]
		if key.Kind != yaml.ScalarNode {
			p.addf(key, "a key must be a word")
			return false
		}
		if earlier := first[key.Value]; earlier != nil {
			p.addf(key, "%q is given twice, first in line %d", key.Value, earlier.Line)
			return false
		}
		first[key.Value] = key
	}
	return true
}

// message prepares the fields of a message: payloads become JSON, and a field that is null is as good as left out.
func (p *preparer) message(node *yaml.Node, md protoreflect.MessageDescriptor) {
	if node.Kind != yaml.MappingNode {
		return // the decoder says what it expected
	}
	kept := node.Content[:0]
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		// The decoder would take other spellings as well: a field has one name.
		field := md.Fields().ByTextName(key.Value)
		switch {
		case field == nil:
			p.addf(key, "unknown field %q, expected one of %s", key.Value, fieldNames(md))
			continue
		case value.ShortTag() == "!!null":
			continue
		case isPayload(key.Value):
			p.payload(value)
		case field.Message() != nil && field.IsList():
			for _, item := range value.Content {
				p.message(item, field.Message())
			}
		case field.Message() != nil:
			p.message(value, field.Message())
		}
		kept = append(kept, key, value)
	}
	node.Content = kept
}

func fieldNames(md protoreflect.MessageDescriptor) string {
	names := make([]string, md.Fields().Len())
	for i := range names {
		names[i] = string(md.Fields().Get(i).Name())
	}
	return strings.Join(names, ", ")
}

// payload makes a JSON text of a mapping. A text is taken to be JSON already.
func (p *preparer) payload(node *yaml.Node) {
	if node.Kind == yaml.ScalarNode && node.ShortTag() == "!!str" {
		return
	}
	if node.Kind != yaml.MappingNode {
		p.addf(node, "must be a mapping, or one JSON object as text")
		return
	}
	w := &jsonWriter{}
	if at, message := w.value(node); at != nil {
		p.addf(at, "%s", message)
		return
	}
	node.Kind, node.Tag, node.Style, node.Content, node.Value = yaml.ScalarNode, "!!str", 0, nil, w.b.String()
}
