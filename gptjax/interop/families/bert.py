"""BERT, ERNIE, RoBERTa and Megatron's BERT, as transformers names them.

Which heads a checkpoint has is told by its tensors, whatever its config says: bert-base-uncased
calls itself a BertForMaskedLM and holds a pooler and the classes of next sentences as well.
"""

from gptjax.errors import BadInput
from gptjax.interop.family import Family, Row, Shapes, linear, norm, separate
from gptjax.interop.fields import ACTIVATIONS, THEIR_ACTIVATIONS, Fields
from gptjax.models.config import EmbeddingConfig
from gptjax.models.kinds import EncoderConfig

OLDER = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
# A model of next sentences alone keeps its classes where a classifier has none.
OLDER += (("classifier.", "cls.seq_relationship."),)


def transformed(c: EncoderConfig) -> bool:
    """Whether a model predicts tokens; its classes are then those of next sentences."""
    return c.head == "transform"


def plain(c: EncoderConfig) -> bool:
    """Whether it does not."""
    return c.head == "plain"


def tied(c: EncoderConfig) -> bool:
    """Whether the table of tokens is also the head, and the bias of the head has one name."""
    return c.tied_embeddings


def untied(c: EncoderConfig) -> bool:
    """Whether the head has a matrix of its own, beside which its bias stands."""
    return not c.tied_embeddings


def bert_told(shapes: Shapes, alike) -> dict:
    """Which heads there are, and how many classes they tell apart."""
    pairs = shapes.get("cls.seq_relationship.weight")
    head = shapes.get("classifier.weight")
    return {
        "transform": "cls.predictions.transform.dense.weight" in shapes,
        "pooler": any(name.endswith("pooler.dense.weight") for name in shapes),
        "classes": pairs[0] if pairs else 0,
        "classifier": head[0] if head else 0,
    }


def roberta_told(shapes: Shapes, alike) -> dict:
    """The same; a classifier of rows has a pooler of its own there."""
    rows = shapes.get("classifier.out_proj.weight")
    head = shapes.get("classifier.weight")
    return {
        "transform": "lm_head.dense.weight" in shapes,
        "pooler": bool(rows) or "roberta.pooler.dense.weight" in shapes,
        "classes": rows[0] if rows else 0,
        "classifier": head[0] if head else 0,
    }


def heads(f: Fields) -> dict:
    """The heads of a model. A classifier is of rows or of tokens, as the architecture says."""
    made, names = f.told, f.get("architectures", [])
    names = [str(name) for name in names] if isinstance(names, list) else []
    classes, tokens = made.get("classes", 0), 0
    if made.get("classifier", 0):
        of_tokens = not made["pooler"] or any("TokenClassification" in name for name in names)
        if not of_tokens and classes:
            raise BadInput(f"{f.source}: the tensors make two classifiers of rows; one is read")
        tokens = made["classifier"] if of_tokens else 0
        classes = classes if of_tokens else made["classifier"]
    return {
        "head": "transform" if made.get("transform", False) else "plain",
        "pooler": "first" if made.get("pooler", False) else "none",
        "classes": classes,
        "token_classes": tokens,
    }


def encoder(f: Fields, offset: int = 0, tasks: int = 0, activations=ACTIVATIONS) -> dict:
    """The fields of a BERT."""
    f.only(is_decoder=False, add_cross_attention=False, position_embedding_type="absolute")
    found = heads(f)
    head = found["head"] == "transform"
    return found | {
        "vocab_size": f.count("vocab_size"),
        "context_length": f.count("max_position_embeddings", 512) - offset,
        "num_layers": f.count("num_hidden_layers"),
        "d_model": f.count("hidden_size"),
        "num_heads": f.count("num_attention_heads"),
        "d_ff": f.count("intermediate_size"),
        "norm_epsilon": f.positive("layer_norm_eps", 1e-12),
        "block": "post",
        "activation": f.chosen("hidden_act", activations, "gelu"),
        "tied_embeddings": f.flag("tie_word_embeddings", True) or not head,
        "embedding": EmbeddingConfig(
            norm=True,
            types=f.count("type_vocab_size", 2),
            tasks=tasks,
            head_bias=head,
            position_offset=offset,
        ),
    }


def their_encoder(c: EncoderConfig, name: str, offset: int = 0, pairs: bool = True) -> dict:
    """The same in the other direction; BadInput for heads that no class has together.

    pairs: whether the family has classes of next sentences.
    """
    count = c.classes or c.token_classes
    labels = {str(n): f"LABEL_{n}" for n in range(count)}
    if c.token_classes and (c.classes or transformed(c)):
        raise BadInput(f"{name} has no model of these heads together")
    if transformed(c):
        if c.classes and (c.classes != 2 or not pairs):
            raise BadInput(f"{name} has no model that predicts tokens and {c.classes} classes")
        task, labels = "ForPreTraining" if c.classes else "ForMaskedLM", {}
    elif count:
        task = "ForSequenceClassification" if c.classes else "ForTokenClassification"
    else:
        task = "Model"
    return {
        "architectures": [f"{name}{task}"],
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.context_length + offset,
        "num_hidden_layers": c.num_layers,
        "hidden_size": c.d_model,
        "num_attention_heads": c.num_heads,
        "intermediate_size": c.ff_size,
        "layer_norm_eps": c.norm_epsilon,
        "hidden_act": THEIR_ACTIVATIONS.get(c.activation, "gelu"),
        "type_vocab_size": c.embedding.types,
        "tie_word_embeddings": c.tied_embeddings,
    } | ({"id2label": labels, "label2id": {v: int(k) for k, v in labels.items()}} if labels else {})


def body(name: str, attention: str = "attention.output.LayerNorm", ff: str = "output.LayerNorm"):
    """Rows of the table of tokens and of the layers, with the names of their two norms."""
    layer = f"{name}.encoder.layer.{{i}}"
    return (
        Row("embedding", f"{name}.embeddings.word_embeddings.weight"),
        Row("positions", f"{name}.embeddings.position_embeddings.weight"),
        Row("types", f"{name}.embeddings.token_type_embeddings.weight"),
        *norm("layer/attention_norm", f"{layer}.{attention}"),
        *norm("layer/mlp_norm", f"{layer}.{ff}"),
        *separate(f"{layer}.attention.self.{{name}}.weight"),
        *linear("layer/attention/output", f"{layer}.attention.output.dense", "D (H K)"),
        *linear("layer/mlp/up", f"{layer}.intermediate.dense", "F D"),
        *linear("layer/mlp/down", f"{layer}.output.dense", "D F"),
    )


def tops(name: str) -> tuple[Row, ...]:
    """Rows of the heads of BERT."""
    return (
        *linear("transform", "cls.predictions.transform.dense", "W D"),
        *norm("transform_norm", "cls.predictions.transform.LayerNorm"),
        Row("head", "cls.predictions.decoder.weight"),
        Row("head_bias", "cls.predictions.bias", when=tied),
        Row("head_bias", "cls.predictions.decoder.bias", when=untied),
        *linear("pooler", f"{name}.pooler.dense", "W D"),
        *linear("classes", "cls.seq_relationship", "C D", transformed),
        *linear("classes", "classifier", "C D", plain),
        *linear("token_classes", "classifier", "C D"),
    )


def bert_zeros(c: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """The bias beside the one that an untied head adds."""
    there = transformed(c) and untied(c)
    return {"cls.predictions.bias": (c.outputs,)} if there else {}


def bert(name: str, prefix: str, architecture: str, read, write, rows) -> Family:
    """A family with the names of BERT."""
    return Family(
        name=name,
        architecture=f"{architecture}ForMaskedLM",
        read=read,
        write=write,
        rows=(*rows, *tops(prefix)),
        body=f"{prefix}.",
        ignored=(
            rf"{prefix}\.embeddings\.(position_ids|token_type_ids)",
            r"cls\.predictions\.bias",
        ),
        alias="cls.predictions.decoder.weight",
        zeros=bert_zeros,
        kinds=("encoder",),
        told=bert_told,
        copies=(("cls.predictions.decoder.bias", "head_bias"),),
        older=OLDER,
        around="bert",
    )


BERT = bert(
    "bert",
    "bert",
    "Bert",
    lambda f: EncoderConfig(**encoder(f)),
    lambda c: their_encoder(c, "Bert"),
    (*body("bert"), *norm("embedding_norm", "bert.embeddings.LayerNorm")),
)


def read_ernie(f: Fields) -> EncoderConfig:
    """ernie: BERT, where asked for with a vector for each task (arXiv 1907.12412)."""
    tasks = f.count("task_type_vocab_size", 3) if f.flag("use_task_id", False) else 0
    return EncoderConfig(**encoder(f, tasks=tasks))


def write_ernie(c: EncoderConfig) -> dict:
    tasks = c.embedding.tasks
    more = {"use_task_id": tasks > 0, "task_type_vocab_size": tasks or 3}
    return their_encoder(c, "Ernie") | more


ERNIE = bert(
    "ernie",
    "ernie",
    "Ernie",
    read_ernie,
    write_ernie,
    (
        *body("ernie"),
        Row("tasks", "ernie.embeddings.task_type_embeddings.weight"),
        *norm("embedding_norm", "ernie.embeddings.LayerNorm"),
    ),
)


def read_megatron(f: Fields) -> EncoderConfig:
    """megatron-bert: norms before the branches and above the last layer, none at the bottom."""
    own = encoder(f)
    embedding = EmbeddingConfig(types=own["embedding"].types, head_bias=own["embedding"].head_bias)
    return EncoderConfig(**own | {"block": "pre", "embedding": embedding})


MEGATRON_BERT = bert(
    "megatron-bert",
    "bert",
    "MegatronBert",
    read_megatron,
    lambda c: their_encoder(c, "MegatronBert"),
    (*body("bert", "attention.ln", "ln"), *norm("final_norm", "bert.encoder.ln")),
)


def read_roberta(f: Fields) -> EncoderConfig:
    """roberta: positions from the row after that of the padding; the head's unit is fixed.

    There a token of padding has no place of its own: where one stands before text, the text's
    places have to be given as positions_BT.
    """
    offset = f.count("pad_token_id", 1) + 1
    activations = {"gelu": "gelu_erf"} if f.told.get("transform", False) else ACTIVATIONS
    return EncoderConfig(**encoder(f, offset, activations=activations))


def write_roberta(c: EncoderConfig) -> dict:
    """The same in the other direction; BadInput where positions begin too early."""
    offset = c.embedding.position_offset
    if offset < 2:
        raise BadInput("roberta has positions from the third row on, or a later one")
    more = {"pad_token_id": offset - 1}
    return their_encoder(c, "Roberta", offset, pairs=False) | more


def classified(c: EncoderConfig) -> bool:
    """Whether the pooler is that of a classifier of rows."""
    return c.classes > 0


def unclassified(c: EncoderConfig) -> bool:
    """Whether it is that of the body."""
    return not c.classes


def roberta_zeros(c: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """The bias beside the one that an untied head adds."""
    return {"lm_head.bias": (c.outputs,)} if transformed(c) and untied(c) else {}


ROBERTA = Family(
    name="roberta",
    architecture="RobertaForMaskedLM",
    read=read_roberta,
    write=write_roberta,
    rows=(
        *body("roberta"),
        *norm("embedding_norm", "roberta.embeddings.LayerNorm"),
        *linear("transform", "lm_head.dense", "W D"),
        *norm("transform_norm", "lm_head.layer_norm"),
        Row("head", "lm_head.decoder.weight"),
        Row("head_bias", "lm_head.bias", when=tied),
        Row("head_bias", "lm_head.decoder.bias", when=untied),
        *linear("pooler", "classifier.dense", "W D", classified),
        *linear("pooler", "roberta.pooler.dense", "W D", unclassified),
        *linear("classes", "classifier.out_proj", "C D"),
        *linear("token_classes", "classifier", "C D"),
    ),
    body="roberta.",
    ignored=(r"roberta\.embeddings\.(position_ids|token_type_ids)", r"lm_head\.bias"),
    alias="lm_head.decoder.weight",
    zeros=roberta_zeros,
    kinds=("encoder",),
    told=roberta_told,
    copies=(("lm_head.decoder.bias", "head_bias"),),
    older=OLDER[:2],
    around="roberta",
)
