"""Words that can replace each other in a sentence, for the pretraining tasks `choice` and `mood`.

Each set of CHOICES has words of one part of speech that only the context tells apart. The two sets
of MOODS have words that are bad and good in most contexts.
"""

_SETS = """
good bad / great terrible / best worst / better worse / happy sad / love hate / loved hated
beautiful ugly / kind cruel / pleasant unpleasant / right wrong / strong weak / rich poor
friend enemy / friends enemies / hope fear / joy sorrow / peace war / life death / alive dead
pleasure pain / easy hard / easy difficult / clever stupid / true false / win lose / gain loss
brave afraid / calm angry / glad sorry / honest false / sweet bitter / warm cold / hot cold
well badly / laughed wept / smile frown / success failure / beginning end / young old / new old
big small / large little / high low / long short / light dark / bright dark / black white
rare common / early late / first last / quick slow / quickly slowly / open closed / open shut
full empty / clean dirty / always never / often seldom / everything nothing / everyone nobody
something nothing / many few / more less / most least / much little / same different / more fewer
before after / above below / up down / in out / inside outside / over under / near far / here there
come go / came went / give take / gave took / buy sell / ask answer / asked answered / begin stop
began ended / rise fall / rose fell / increase decrease / maximum minimum / upper lower / left right
north south / east west / input output / read write / add remove / enable disable / start stop
forward backward / row column / rows columns / positive negative / true none / public private
local remote / local global / static dynamic / required optional / valid invalid / encoder decoder
parent child / source target / real complex / even odd / row matrix / key value / client server
man woman / men women / boy girl / king queen / father mother / son daughter / brother sister
husband wife / he she / him her / his her / himself herself / day night / morning evening
summer winter / sun moon / today yesterday / who what when where why how which
Who What When Where Why How Which / this that / these those / is are / was were / has had
will would / can could / may must / and but or / because although / if unless / with without
and therefore / however therefore / one two three four five six / city country / street house room
head hand eyes heart / river sea mountain / dog cat horse / doctor lawyer priest / money power love
year month week / water fire wine bread / church court school / king army
red green blue white black / gold silver iron / town village / he it they we I you
"""

CHOICES: tuple[tuple[str, ...], ...] = tuple(
    tuple(words.split()) for words in _SETS.strip().replace("\n", " / ").split(" / ")
)

MOODS: tuple[tuple[str, ...], tuple[str, ...]] = (
    tuple(
        """
        bad terrible horrible awful ugly sad miserable wretched cruel evil wicked stupid foolish
        dull boring tedious worst worse hate hated angry painful bitter dreadful hideous poor
        useless unpleasant unhappy disappointed disgusting vile weak wrong failure failed ridiculous
        absurd hopeless gloomy dismal fear afraid pain sorrow despair disgrace nasty tired weary
        false
        """.split()
    ),
    tuple(
        """
        good great wonderful beautiful happy delightful charming excellent lovely splendid brilliant
        noble kind gentle sweet pleasant best better love loved glad perfect magnificent admirable
        amusing clever wise funny bright fine fresh fascinating graceful success joy pleasure
        delight hope strong beauty enjoyed laugh smile smiled interesting delicious generous honest
        """.split()
    ),
)
